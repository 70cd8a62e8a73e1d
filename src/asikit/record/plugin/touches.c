/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The hot part: kernel memory accesses, entries into the kernel and returns from it, calls. A touch is
 * written once for each page and kind of access until the CPU enters the kernel again.
 */
#include <stdlib.h>
#include <string.h>

#include "callbacks.h"

enum { READ = 1, WRITE = 2, FETCH = 4 };
#define IRETQ_SIZE 2
#define IDT_PAGE (0xfffffe0000000000ull >> PAGE_SHIFT) /* CPU_ENTRY_AREA_RO_IDT */
#define VMCB_EXIT_CODE 0x70 /* AMD64 Architecture Programmer's Manual volume 2, appendix B */

void seen_grow(struct vcpu *v)
{
    struct seen *old = v->seen;
    uint32_t old_slots = v->seen_mask ? v->seen_mask + 1 : 0;
    v->seen_mask = old_slots ? old_slots * 2 - 1 : (1 << 12) - 1;
    v->seen = calloc(v->seen_mask + 1, sizeof *v->seen);
    for (uint32_t i = 0; i < old_slots; i++)
        if (old[i].epoch == v->epoch) {
            uint32_t j = old[i].page * 0x9e3779b1u & v->seen_mask;
            while (v->seen[j].epoch)
                j = (j + 1) & v->seen_mask;
            v->seen[j] = old[i];
        }
    free(old);
}

/*
 * Accesses that would find their page and kind seen: nothing is to be done for them. By the page's lowest bits, the base of
 * the last such page, for reads and for writes. An entry only ever says what the list of the seen pages says, too.
 */
#define RECENT_BITS 6
#define NO_BASE 0x8000000000000000ull /* no address lies on this page */
static struct recent { uint64_t base[1 << RECENT_BITS][2]; } recent[MAX_CPUS];

/*
 * What QEMU says of an access, in one word: at how many places of a page it can begin, times 16, plus 8 for a store: then the
 * low bits are where the base for stores lies, as against that for loads.
 */
#define KNOWN (1u << 18)
static uint32_t decoded[KNOWN];
#define STORE 8
#define PLACES_SHIFT 4

static inline uint64_t *recent_base(unsigned cpu, uint64_t vaddr, uint32_t store)
{
    uint32_t entry = vaddr >> PAGE_SHIFT & ((1 << RECENT_BITS) - 1);
    return (uint64_t *)((char *)&recent[cpu] + (entry << 4 | store));
}

static uint32_t decode(qemu_plugin_meminfo_t info)
{
    uint32_t places = PAGE_SIZE + 1 - (1u << qemu_plugin_mem_size_shift(info));
    uint32_t word = places << PLACES_SHIFT | (qemu_plugin_mem_is_store(info) ? STORE : 0);
    if (info < KNOWN)
        decoded[info] = word;
    return word;
}

static inline uint32_t known(qemu_plugin_meminfo_t info)
{
    return info < KNOWN ? decoded[info] : 0;
}

static inline bool is_store(qemu_plugin_meminfo_t info)
{
    uint32_t word = known(info);
    return (word ? word : decode(info)) & STORE;
}

/* Whether an access is a recent one; it lies within its page then. */
static inline bool is_recent(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr)
{
    uint32_t word = known(info);
    return vaddr - *recent_base(cpu, vaddr, word & STORE) < word >> PLACES_SHIFT;
}

void forget_touches(struct vcpu *v)
{
    struct recent *r = &recent[v - vcpus];
    for (int i = 0; i < 1 << RECENT_BITS; i++)
        r->base[i][0] = r->base[i][1] = NO_BASE;
    v->fetched = 0;
    v->n_seen = 0;
    if (!++v->epoch) { /* wrapped */
        memset(v->seen, 0, (v->seen_mask + 1) * sizeof *v->seen);
        v->epoch = 1;
    }
}

void forget_frame(uint64_t frame)
{
    uint64_t page = (layout.page_offset >> PAGE_SHIFT) + frame;
    for (int cpu = 0; cpu < n_cpus; cpu++) {
        struct vcpu *v = &vcpus[cpu];
        uint32_t i = page * 0x9e3779b1u & v->seen_mask;
        for (; v->seen[i].epoch == v->epoch; i = (i + 1) & v->seen_mask)
            if (v->seen[i].page == page)
                v->seen[i].kinds = 0;
        *recent_base(cpu, page << PAGE_SHIFT, 0) = NO_BASE;
        *recent_base(cpu, page << PAGE_SHIFT, STORE) = NO_BASE;
    }
}

static uint64_t frame_of(uint64_t vaddr, qemu_plugin_meminfo_t info)
{
    if (vaddr - layout.page_offset < guest_frames() << PAGE_SHIFT)
        return (vaddr - layout.page_offset) >> PAGE_SHIFT;
    if (vaddr >= KERNEL_HALF) {
        uint8_t *at = guest_virtual(vaddr);
        return at ? (at - guest_physical(0)) >> PAGE_SHIFT : NONE;
    }
    struct qemu_plugin_hwaddr *at = qemu_plugin_get_hwaddr(info, vaddr);
    return at && !qemu_plugin_hwaddr_is_io(at) ? qemu_plugin_hwaddr_phys_addr(at) >> PAGE_SHIFT : NONE;
}

static void first_touch(struct vcpu *v, unsigned cpu, uint64_t vaddr, uint32_t kind, uint64_t ip, qemu_plugin_meminfo_t info)
{
    uint32_t place = place_of(cpu, vaddr, frame_of(vaddr, info));
    uint32_t stack = stack_leaf(stack_now(v, cpu), ip);
    emit_event(kind == READ ? TOUCH_READ : kind == WRITE ? TOUCH_WRITE : TOUCH_FETCH, cpu, place, stack, vaddr);
}

static inline void remember(unsigned cpu, uint64_t page, uint32_t kind)
{
    if (kind != FETCH)
        *recent_base(cpu, page << PAGE_SHIFT, kind == WRITE ? STORE : 0) = page << PAGE_SHIFT;
}

static inline void touch(struct vcpu *v, unsigned cpu, uint64_t vaddr, uint32_t kind, uint64_t ip, qemu_plugin_meminfo_t info)
{
    uint64_t page = vaddr >> PAGE_SHIFT;
    uint32_t i = page * 0x9e3779b1u & v->seen_mask;
    struct seen *s;
    for (;; i = (i + 1) & v->seen_mask) {
        s = &v->seen[i];
        if (s->epoch != v->epoch) {
            *s = (struct seen){ page, v->epoch, 0 };
            v->n_seen++;
            break;
        }
        if (s->page == page) {
            if (s->kinds & kind) {
                remember(cpu, page, kind);
                return;
            }
            break;
        }
    }
    if (v->muted)
        return;
    s->kinds |= kind;
    remember(cpu, page, kind);
    first_touch(v, cpu, vaddr, kind, ip, info);
    if (v->n_seen * 4 > v->seen_mask * 3)
        seen_grow(v);
}

/*
 * QEMU 7.2 does not take back the callback of a block's last instruction (plugin_gen_disable_mem_helpers() tests a flag
 * that is set only later), and goes on calling it while it delivers an interrupt: for the read of the interrupt descriptor
 * table, which code never reads, and the stores of the stack frame. So nothing counts from then on until the next block.
 */
static inline bool by_code(struct vcpu *v, uint64_t vaddr)
{
    if (vaddr >> PAGE_SHIFT == IDT_PAGE)
        v->in_block = false;
    return v->in_block;
}

static __attribute__((noinline)) void access(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr, uint64_t ip)
{
    struct vcpu *v = &vcpus[cpu];
    if (v->mode == MODE_ENDED) /* nothing counts any more; the sooner its end is found the better */
        remember(cpu, vaddr >> PAGE_SHIFT, is_store(info) ? WRITE : READ);
    if (v->mode != MODE_KERNEL || !by_code(v, vaddr))
        return;
    uint32_t kind = is_store(info) ? WRITE : READ;
    touch(v, cpu, vaddr, kind, ip, info);
    uint64_t last = vaddr + (1ull << qemu_plugin_mem_size_shift(info)) - 1;
    if ((last ^ vaddr) >> PAGE_SHIFT)
        touch(v, cpu, last, kind, ip, info);
}

static inline void accessed(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *ip)
{
    if (!is_recent(cpu, info, vaddr))
        access(cpu, info, vaddr, (uint64_t)ip);
}

void on_access(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *ip)
{
    accessed(cpu, info, vaddr, ip);
}

/* On its own, so that what is done most times needs neither a call nor a stack frame. */
static __attribute__((noinline)) void accessed_by_another(qemu_plugin_meminfo_t info, uint64_t vaddr, void *ip)
{
    accessed(api_find_cpu(), info, vaddr, ip);
}

void on_access_by_running(unsigned told, qemu_plugin_meminfo_t info, uint64_t vaddr, void *ip)
{
    if (api_same_cpu())
        accessed(api_running.cpu, info, vaddr, ip);
    else
        accessed_by_another(info, vaddr, ip);
}

/* ---- entries and returns ---- */

static struct record *enter(struct vcpu *v, unsigned cpu, enum record_type type, uint32_t arg, uint64_t address)
{
    v->entered = v->user_clock;
    v->mode = MODE_KERNEL;
    v->muted = false;
    v->mute_stack = 0;
    v->nmi = type == ENTRY_NMI;
    forget_touches(v);
    return emit_event(type, cpu, arg, 0, address);
}

static void leave(struct vcpu *v, enum mode to)
{
    v->mode = to;
    v->fetched = 0;
}

/* A return that was none of SYSRET, SYSEXIT, IRET and VMRUN: user code has run since the kernel was entered. */
static void notice_return(struct vcpu *v)
{
    if (v->mode != MODE_KERNEL || v->user_clock == v->entered)
        return;
    count_lost(LOST_RETURN);
    leave(v, MODE_USER);
}

static void look_at_block(struct vcpu *v, unsigned cpu, uint64_t block)
{
    if (v->mode == MODE_KERNEL) {
        if (v->muted)
            return;
        v->fetched = block_page(block);
        struct text_page *page = &text_pages[v->fetched];
        if (page->epoch[cpu] == v->epoch)
            return;
        page->epoch[cpu] = v->epoch;
        touch(v, cpu, block_address(block), FETCH, block_address(block), 0);
    } else if (v->mode == MODE_USER) {
        count_lost(LOST_UNKNOWN_ENTRY);
        enter(v, cpu, ENTRY_EXCEPTION, 0xff, block_address(block));
    } else /* nothing counts until the CPU is the recorded kernel's again */
        v->fetched = block_page(block);
}

static __attribute__((noinline)) void begin_block_elsewhere(struct vcpu *v, unsigned cpu, uint64_t block)
{
    look_at_block(v, cpu, block);
    v->kernel_clock += block_counted(block);
}

/* It is counted after what else happens at its beginning, as in translate_recording(). */
static inline void begin_block(unsigned cpu, uint64_t block)
{
    struct vcpu *v = &vcpus[cpu];
    v->in_block = true;
    if (block_page(block) != v->fetched)
        begin_block_elsewhere(v, cpu, block);
    else
        v->kernel_clock += block_counted(block);
}

void on_block(unsigned cpu, void *block)
{
    begin_block(cpu, (uint64_t)block);
}

static __attribute__((noinline)) void begin_block_of_another(uint64_t block)
{
    begin_block(api_find_cpu(), block);
}

void on_block_of_running(unsigned told, void *block)
{
    if (api_same_cpu())
        begin_block(api_running.cpu, (uint64_t)block);
    else
        begin_block_of_another((uint64_t)block);
}

/* The second page of a block that crosses into it. */
void on_fetch(unsigned cpu, void *udata)
{
    struct vcpu *v = &vcpus[cpu];
    uint64_t address = (uint64_t)udata;
    if (v->mode == MODE_KERNEL)
        touch(v, cpu, address, FETCH, address, 0);
}

void on_user_block(unsigned cpu, void *instructions)
{
    vcpus[api_cpu(cpu)].user_clock += (uint64_t)instructions;
}

static void enter_by_gate(struct vcpu *v, unsigned cpu, const struct gate *g)
{
    notice_return(v);
    bool nmi = g->vector == 2, exception = g->vector < 32;
    if (v->mode == MODE_USER)
        enter(v, cpu, nmi ? ENTRY_NMI : exception ? ENTRY_EXCEPTION : ENTRY_INTERRUPT, g->vector, g->address);
    else {
        v->mute_stack = v->mute_stack << 1 | v->muted;
        v->muted = false;
        if (nmi) {
            v->nmi = true;
            forget_touches(v);
        }
        emit_event(nmi ? NESTED_NMI : exception ? NESTED_EXCEPTION : NESTED_INTERRUPT, cpu, g->vector,
                   exception ? stack_now(v, cpu) : 0, g->address);
    }
}

void on_gate(unsigned cpu, void *udata)
{
    struct gate *g = udata;
    struct vcpu *v = &vcpus[cpu];
    if (v->mode != MODE_GUEST && v->mode != MODE_ENDED)
        enter_by_gate(v, cpu, g);
    begin_block(cpu, g->block);
}

/* System call: the number is in pt_regs, just above where the first call stores its return address. */
void on_syscall(unsigned cpu, void *udata)
{
    struct gate *g = udata;
    struct vcpu *v = &vcpus[cpu];
    notice_return(v);
    if (v->mode == MODE_USER) {
        if (!v->wants_number)
            stream_hold();
        v->wants_number = enter(v, cpu, ENTRY_SYSCALL, NONE, g->address);
    }
    begin_block(cpu, g->block);
}

void on_sysret(unsigned cpu, void *udata)
{
    if (vcpus[cpu].mode == MODE_KERNEL) {
        leave(&vcpus[cpu], MODE_USER);
        pages_settle(cpu);
        emit_event(RETURN_USER, cpu, 0, 0, (uint64_t)udata);
    }
}

void on_iret(unsigned cpu, void *udata)
{
    vcpus[cpu].iret = true;
}

/* IRET's first load is of the instruction pointer it returns to. */
void on_iret_load(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *ip)
{
    struct vcpu *v = &vcpus[cpu];
    if (v->mode != MODE_KERNEL)
        return;
    access(cpu, info, vaddr, (uint64_t)ip);
    if (!v->iret)
        return;
    v->iret = false;
    uint64_t target = read_pointer(vaddr);
    if (target == (uint64_t)ip + IRETQ_SIZE) /* iret_to_self(): a serializing instruction, not a return */
        return;
    if (target < KERNEL_HALF) {
        leave(v, MODE_USER);
        pages_settle(cpu);
        emit_event(RETURN_USER, cpu, 1, 0, (uint64_t)ip);
        return;
    }
    v->muted = v->mute_stack & 1;
    v->mute_stack >>= 1;
    shadow_return(v, cpu, vaddr + 32); /* what was called above the frame of five words has ended too */
    emit_event(NESTED_RETURN, cpu, 0, 0, (uint64_t)ip);
    if (v->nmi) {
        v->nmi = false;
        forget_touches(v);
    }
}

/* KVM loads the guest's part of the state that VMRUN leaves alone from the same VMCB, just before VMRUN. */
void on_vmload(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t physical, void *ip)
{
    if (vcpus[cpu].mode == MODE_KERNEL)
        vcpus[cpu].vmload = physical & ~(PAGE_SIZE - 1);
}

void on_vmrun(unsigned cpu, void *udata)
{
    struct vcpu *v = &vcpus[cpu];
    if (v->mode == MODE_KERNEL) {
        v->vmcb = v->vmload;
        emit_event(VM_ENTRY, cpu, 0, 0, (uint64_t)udata);
        leave(v, MODE_GUEST);
    }
}

void on_vmexit(unsigned cpu, void *udata)
{
    struct gate *g = udata;
    struct vcpu *v = &vcpus[cpu];
    if (v->mode == MODE_GUEST) {
        uint8_t *vmcb = v->vmcb ? guest_physical(v->vmcb) : NULL;
        enter(v, cpu, VM_EXIT, vmcb ? read32(vmcb + VMCB_EXIT_CODE) : NONE, g->address);
    }
    begin_block(cpu, g->block);
}

/* ---- calls ---- */

void on_call(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *udata)
{
    struct call_site *c = udata;
    cpu = api_cpu(cpu);
    struct vcpu *v = &vcpus[cpu];
    if (v->mode != MODE_KERNEL || !v->in_block)
        return;
    if (!is_recent(cpu, info, vaddr))
        access(cpu, info, vaddr, c->address);
    if (!v->in_block || !is_store(info)) /* a load: the pointer of an indirect call */
        return;
    v->in_block = false; /* a call ends its block */
    if (c->saves_registers) {
        /*
         * error_entry() and paranoid_entry() move their return address to below the registers that they save. What
         * lies above the error code is where the exception came from: the frame that the kernel's unwinder shows.
         */
        uint64_t from = read_pointer(vaddr + 16);
        if (from >= KERNEL_HALF)
            shadow_call(v, cpu, vaddr, from);
        else
            shadow_return(v, cpu, vaddr);
        return;
    }
    shadow_call(v, cpu, vaddr, c->return_address);
    if (v->wants_number) {
        const uint8_t *at = guest_virtual(vaddr + 8 + layout.orig_ax_offset);
        v->wants_number->arg = at ? read32(at) : NONE;
        v->wants_number = NULL;
        stream_release();
    }
}

void on_return(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *ip)
{
    cpu = api_cpu(cpu);
    struct vcpu *v = &vcpus[cpu];
    if (v->mode != MODE_KERNEL || !v->in_block)
        return;
    if (!is_recent(cpu, info, vaddr))
        access(cpu, info, vaddr, (uint64_t)ip);
    if (!v->in_block)
        return;
    v->in_block = false; /* a return ends its block */
    shadow_return(v, cpu, vaddr);
}
