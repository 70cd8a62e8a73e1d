/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A QEMU TCG plugin that records what a Linux kernel does, for asikit: entries and returns, the first
 * touch of each page in each round trip with the kernel stack, page allocations, task and mm switches.
 *
 * The guest's init marks the beginning and the end with long NOPs (see guest/marker.h). Outside of
 * that nothing is instrumented but those marks, so that booting costs nothing.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../guest/marker.h"
#include "qemu_api.h"
#include "recorder.h"

PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

enum { READ = 1, WRITE = 2, FETCH = 4 };
#define IRETQ_SIZE 2

struct vcpu vcpus[MAX_CPUS];
bool one_cpu;
static int n_cpus;
static qemu_plugin_id_t plugin;

/* What callbacks need to know of the code they are for; kept for the whole run, as QEMU's pointers to it are. */
struct text_page { uint64_t page; uint32_t epoch[MAX_CPUS]; };
struct block { uint64_t address; struct text_page *page; uint32_t instructions; };
struct call_site { uint64_t address, return_address; };
struct gate { uint64_t address; uint32_t vector; struct block block; };

static struct table text_pages;
static struct text_page **text_page_list;
static uint32_t n_text_pages;

/* ---- touches ---- */

static void seen_grow(struct vcpu *v)
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

static void forget_touches(struct vcpu *v)
{
    v->n_seen = 0;
    if (!++v->epoch) { /* wrapped */
        memset(v->seen, 0, (v->seen_mask + 1) * sizeof *v->seen);
        v->epoch = 1;
    }
}

static void forget_frame(uint64_t frame)
{
    uint64_t page = (layout.page_offset >> PAGE_SHIFT) + frame;
    for (int cpu = 0; cpu < n_cpus; cpu++) {
        struct vcpu *v = &vcpus[cpu];
        uint32_t i = page * 0x9e3779b1u & v->seen_mask;
        for (; v->seen[i].epoch == v->epoch; i = (i + 1) & v->seen_mask)
            if (v->seen[i].page == page)
                v->seen[i].kinds = 0;
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
    uint32_t place = place_of(vaddr, frame_of(vaddr, info));
    uint32_t stack = stack_leaf(stack_now(v, cpu), ip);
    emit_event(kind == READ ? TOUCH_READ : kind == WRITE ? TOUCH_WRITE : TOUCH_FETCH, cpu, place, stack, vaddr);
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
            if (s->kinds & kind)
                return;
            break;
        }
    }
    if (v->muted)
        return;
    s->kinds |= kind;
    first_touch(v, cpu, vaddr, kind, ip, info);
    if (v->n_seen * 4 > v->seen_mask * 3)
        seen_grow(v);
}

static inline void access(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr, uint64_t ip)
{
    struct vcpu *v = &vcpus[cpu];
    uint32_t kind = qemu_plugin_mem_is_store(info) ? WRITE : READ;
    touch(v, cpu, vaddr, kind, ip, info);
    uint64_t last = vaddr + (1ull << qemu_plugin_mem_size_shift(info)) - 1;
    if ((last ^ vaddr) >> PAGE_SHIFT)
        touch(v, cpu, last, kind, ip, info);
}

static void on_access(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *ip)
{
    if (vcpus[cpu].mode == MODE_KERNEL)
        access(cpu, info, vaddr, (uint64_t)ip);
}

/* ---- entries and returns ---- */

static uint64_t per_cpu_pointer(unsigned cpu, uint64_t symbol)
{
    return read_pointer(layout.per_cpu[cpu] + symbol);
}

static void enter(struct vcpu *v, unsigned cpu, enum record_type type, uint32_t arg, uint64_t address)
{
    v->mode = MODE_KERNEL;
    v->muted = false;
    v->nested = 0;
    v->mute_stack = 0;
    v->nmi = type == ENTRY_NMI;
    forget_touches(v);
    emit_event(type, cpu, arg, 0, address);
}

static void on_gate(unsigned cpu, void *udata);
static void on_block(unsigned cpu, void *udata)
{
    struct block *b = udata;
    struct vcpu *v = &vcpus[cpu];
    if (!one_cpu) {
        v->clock += b->instructions;
        v->kernel_clock += b->instructions;
    }
    if (v->mode == MODE_KERNEL) {
        if (b->page->epoch[cpu] == v->epoch || v->muted)
            return;
        b->page->epoch[cpu] = v->epoch;
        touch(v, cpu, b->address, FETCH, b->address, 0);
    } else if (v->mode == MODE_USER) {
        count_lost(LOST_UNKNOWN_ENTRY);
        enter(v, cpu, ENTRY_EXCEPTION, 0xff, b->address);
    }
}

/* The second page of a block that crosses into it. */
static void on_fetch(unsigned cpu, void *udata)
{
    struct vcpu *v = &vcpus[cpu];
    uint64_t address = (uint64_t)udata;
    if (v->mode == MODE_KERNEL)
        touch(v, cpu, address, FETCH, address, 0);
}

static void on_user_block(unsigned cpu, void *instructions)
{
    vcpus[cpu].clock += (uint64_t)instructions;
}

static void on_gate(unsigned cpu, void *udata)
{
    struct gate *g = udata;
    struct vcpu *v = &vcpus[cpu];
    if (v->mode == MODE_GUEST)
        return;
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
    on_block(cpu, &g->block);
}

/* System call: the number is in pt_regs, just above where the first call stores its return address. */
static void on_syscall(unsigned cpu, void *udata)
{
    struct gate *g = udata;
    struct vcpu *v = &vcpus[cpu];
    if (v->mode == MODE_USER) {
        v->mode = MODE_KERNEL;
        v->muted = false;
        v->mute_stack = 0;
        v->nmi = false;
        forget_touches(v);
        if (!v->wants_number)
            stream_hold();
        v->wants_number = emit_event(ENTRY_SYSCALL, cpu, NONE, 0, g->address);
    }
    on_block(cpu, &g->block);
}

static void on_sysret(unsigned cpu, void *udata)
{
    if (vcpus[cpu].mode == MODE_KERNEL) {
        vcpus[cpu].mode = MODE_USER;
        emit_event(RETURN_USER, cpu, 0, 0, (uint64_t)udata);
    }
}

static void on_iret(unsigned cpu, void *udata)
{
    vcpus[cpu].iret = true;
}

/* IRET's first load is of the instruction pointer it returns to. */
static void on_iret_load(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *ip)
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
        v->mode = MODE_USER;
        emit_event(RETURN_USER, cpu, 1, 0, (uint64_t)ip);
        return;
    }
    v->muted = v->mute_stack & 1;
    v->mute_stack >>= 1;
    emit_event(NESTED_RETURN, cpu, 0, 0, (uint64_t)ip);
    if (v->nmi) {
        v->nmi = false;
        forget_touches(v);
    }
}

static void on_vmrun(unsigned cpu, void *udata)
{
    struct vcpu *v = &vcpus[cpu];
    if (v->mode == MODE_KERNEL) {
        emit_event(VM_ENTRY, cpu, 0, 0, (uint64_t)udata);
        v->mode = MODE_GUEST;
    }
}

static void on_vmexit(unsigned cpu, void *udata)
{
    struct gate *g = udata;
    if (vcpus[cpu].mode == MODE_GUEST)
        enter(&vcpus[cpu], cpu, VM_EXIT, NONE, g->address);
    on_block(cpu, &g->block);
}

/* ---- calls, tasks, allocations ---- */

static void on_call(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *udata)
{
    struct call_site *c = udata;
    struct vcpu *v = &vcpus[cpu];
    if (v->mode != MODE_KERNEL)
        return;
    access(cpu, info, vaddr, c->address);
    if (!qemu_plugin_mem_is_store(info)) /* the pointer of an indirect call */
        return;
    shadow_call(v, cpu, vaddr, c->return_address);
    if (v->wants_number) {
        const uint8_t *at = guest_virtual(vaddr + 8 + layout.orig_ax_offset);
        v->wants_number->arg = at ? read32(at) : NONE;
        v->wants_number = NULL;
        stream_release();
    }
}

static void on_return(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *ip)
{
    struct vcpu *v = &vcpus[cpu];
    if (v->mode != MODE_KERNEL)
        return;
    access(cpu, info, vaddr, (uint64_t)ip);
    shadow_return(v, cpu, vaddr);
}

static uint32_t mm_id(uint64_t mm)
{
    static struct table ids;
    bool fresh;
    if (!mm || mm == layout.init_mm)
        return 0;
    if (!ids.slot)
        table_prepare(&ids, 1 << 8);
    uint32_t *id = table_find(&ids, read_pointer(mm + layout.mm_ctx_id), 1, &fresh);
    if (fresh)
        *id = ids.n;
    return *id;
}

static void check_mm(struct vcpu *v, unsigned cpu)
{
    uint64_t mm = per_cpu_pointer(cpu, layout.loaded_mm);
    if (mm <= 1) /* LOADED_MM_SWITCHING */
        return;
    uint32_t id = mm_id(mm);
    if (id != v->loaded_mm_id) {
        v->loaded_mm_id = id;
        emit_event(MM_SWITCH, cpu, id, 0, mm);
    }
}

static uint32_t task_row(uint64_t task)
{
    static struct table ids;
    static uint32_t n;
    bool fresh;
    uint8_t *at = guest_virtual(task);
    if (!at)
        return NONE;
    if (!ids.slot)
        table_prepare(&ids, 1 << 8);
    uint32_t pid = read32(at + layout.task_pid), mm = mm_id(read64(at + layout.task_mm));
    uint64_t comm[2];
    memcpy(comm, at + layout.task_comm, sizeof comm);
    /* A task is a new row when it has become another program: tasks are never reused while they run. */
    uint32_t *id = table_find(&ids, task ^ (uint64_t)pid << 48, comm[0] * 31 + comm[1] + mm + 1, &fresh);
    if (fresh) {
        *id = n++;
        emit((struct record){ .type = ROW_TASK, .arg = *id, .x = pid, .stack = read32(at + layout.task_tgid),
                              .clock = comm[0], .addr = comm[1] });
        emit((struct record){ .type = ROW_TASK_MM, .arg = *id, .x = mm });
    }
    return *id;
}

static void on_mm_switch(unsigned cpu, void *udata)
{
    if (vcpus[cpu].mode == MODE_KERNEL)
        check_mm(&vcpus[cpu], cpu);
}

static void on_task_switch(unsigned cpu, void *udata)
{
    struct vcpu *v = &vcpus[cpu];
    if (v->mode != MODE_KERNEL)
        return;
    check_mm(v, cpu);
    uint32_t id = task_row(per_cpu_pointer(cpu, layout.current_task));
    if (id != NONE && id != v->task_id) {
        v->task_id = id;
        emit_event(TASK_SWITCH, cpu, id, 0, 0);
    }
}

static void on_tlb_flush(unsigned cpu, void *kernel)
{
    if (vcpus[cpu].mode == MODE_KERNEL)
        emit_event(TLB_FLUSH, cpu, (uint64_t)kernel, 0, 0);
}

/*
 * The handlers of the trace events mm_page_alloc and mm_page_free store the event's fields; the
 * events are on only for this recording, so what they touch is not the workload's.
 */
static void on_handler_begin(unsigned cpu, void *udata)
{
    struct vcpu *v = &vcpus[cpu];
    if (v->mode == MODE_KERNEL) {
        v->muted = true;
        v->stores.n = 0;
    }
}

static void on_handler_store(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *ip)
{
    struct vcpu *v = &vcpus[cpu];
    if (qemu_plugin_mem_is_store(info) && !shadow_has(vaddr) && v->stores.n < sizeof v->stores.addr / sizeof *v->stores.addr)
        v->stores.addr[v->stores.n++] = vaddr;
}

/* The event is where one store, taken for that of its first field, has others at its second and third. */
static uint8_t *find_event(struct vcpu *v, uint64_t first, uint64_t second, uint64_t third)
{
    for (int i = 0; i < v->stores.n; i++) {
        uint64_t event = v->stores.addr[i] - first;
        int found = 0;
        for (int j = 0; j < v->stores.n; j++)
            found |= (v->stores.addr[j] == event + second) | (v->stores.addr[j] == event + third) << 1;
        if (found == 3)
            return guest_virtual(event);
    }
    return NULL;
}

static uint32_t caller_of(struct vcpu *v, unsigned cpu, uint64_t start, uint64_t end)
{
    uint32_t stack = stack_now(v, cpu);
    while (stack_address(stack) - start < end - start)
        stack = stack_parent(stack);
    return stack;
}

static void on_alloc_end(unsigned cpu, void *udata)
{
    struct vcpu *v = &vcpus[cpu];
    if (v->mode != MODE_KERNEL || !v->muted)
        return;
    v->muted = false;
    uint8_t *event = find_event(v, layout.alloc_pfn, layout.alloc_order, layout.alloc_gfp);
    if (!event) {
        count_lost(LOST_ALLOCATION);
        return;
    }
    uint64_t frame = read64(event + layout.alloc_pfn);
    if (frame == UINT64_MAX) /* a failed allocation */
        return;
    uint32_t order = read32(event + layout.alloc_order);
    uint64_t gfp = layout.alloc_gfp_bytes == 8 ? read64(event + layout.alloc_gfp) : read32(event + layout.alloc_gfp);
    uint32_t stack = caller_of(v, cpu, layout.alloc_iter_start, layout.alloc_iter_end);
    uint32_t id = page_allocated(frame, order, gfp, read32(event + layout.alloc_migratetype), stack);
    for (uint64_t i = 0; i < 1ull << order; i++)
        forget_frame(frame + i);
    emit_event(PAGE_ALLOC, cpu, id, stack, 0);
}

static void on_free_end(unsigned cpu, void *udata)
{
    struct vcpu *v = &vcpus[cpu];
    if (v->mode != MODE_KERNEL || !v->muted)
        return;
    v->muted = false;
    uint8_t *event = find_event(v, layout.free_pfn, layout.free_order, layout.free_order);
    if (!event) {
        count_lost(LOST_ALLOCATION);
        return;
    }
    uint32_t stack = caller_of(v, cpu, layout.free_iter_start, layout.free_iter_end);
    emit_event(PAGE_FREE, cpu, page_freed(read64(event + layout.free_pfn), read32(event + layout.free_order)), stack, 0);
}

/* ---- translation ---- */

static struct text_page *text_page(uint64_t address)
{
    bool fresh;
    uint32_t *id = table_find(&text_pages, address >> PAGE_SHIFT, 0, &fresh);
    if (fresh) {
        *id = n_text_pages++;
        text_page_list = realloc(text_page_list, n_text_pages * sizeof *text_page_list);
        text_page_list[*id] = calloc(1, sizeof **text_page_list);
        text_page_list[*id]->page = address >> PAGE_SHIFT;
    }
    return text_page_list[*id];
}

static void *keep(const void *what, size_t size)
{
    return memcpy(malloc(size), what, size);
}

static bool is_return(const uint8_t *code, size_t size)
{
    return code[0] == 0xc3 || (size == 2 && code[0] == 0xf3 && code[1] == 0xc3) || code[0] == 0xc2;
}

static bool is_call(const uint8_t *code, size_t size)
{
    size_t i = 0;
    while (i + 1 < size && (code[i] == 0x2e || code[i] == 0x3e || code[i] == 0x66 || code[i] == 0xf2 || (code[i] & 0xf0) == 0x40))
        i++;
    return code[i] == 0xe8 || (code[i] == 0xff && (code[i + 1] & 0x38) == 0x10);
}

/*
 * Always for reads and writes: QEMU 7.2 mixes up the two when asked for one of them (accel/tcg/plugin-gen.c,
 * op_rw() adds one to what is a bit mask already).
 */
static void on_memory(struct qemu_plugin_insn *insn, plugin_mem_cb cb, void *udata)
{
    qemu_plugin_register_vcpu_mem_cb(insn, cb, QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW, udata);
}

static bool in_range(uint64_t address, uint64_t start, uint64_t end)
{
    return address - start < end - start;
}

static void hook_handlers(struct qemu_plugin_insn *insn, uint64_t ip, bool returns)
{
    bool alloc = in_range(ip, layout.alloc_start, layout.alloc_end);
    if (!alloc && !in_range(ip, layout.free_start, layout.free_end))
        return;
    if (ip == (alloc ? layout.alloc_start : layout.free_start))
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_handler_begin, QEMU_PLUGIN_CB_NO_REGS, NULL);
    if (returns)
        qemu_plugin_register_vcpu_insn_exec_cb(insn, alloc ? on_alloc_end : on_free_end, QEMU_PLUGIN_CB_NO_REGS, NULL);
    else
        on_memory(insn, on_handler_store, NULL);
}

static void hook_functions(struct qemu_plugin_insn *insn, uint64_t ip, bool returns)
{
    if (ip == layout.task_hook)
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_task_switch, QEMU_PLUGIN_CB_NO_REGS, NULL);
    if (returns && in_range(ip, layout.mm_hook_start, layout.mm_hook_end))
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_mm_switch, QEMU_PLUGIN_CB_NO_REGS, NULL);
    for (int i = 0; i < layout.n_tlb_user; i++)
        if (ip == layout.tlb_user[i])
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_tlb_flush, QEMU_PLUGIN_CB_NO_REGS, (void *)0);
    for (int i = 0; i < layout.n_tlb_kernel; i++)
        if (ip == layout.tlb_kernel[i])
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_tlb_flush, QEMU_PLUGIN_CB_NO_REGS, (void *)1);
    hook_handlers(insn, ip, returns);
}

/* Where VMRUN goes on after a VM exit: by host address, so that a nested guest's code cannot be taken for it. */
static struct { const uint8_t *at[16]; int n; } vm_exits;

static void instrument_insn(struct qemu_plugin_insn *insn)
{
    const uint8_t *code = qemu_plugin_insn_data(insn);
    size_t size = qemu_plugin_insn_size(insn);
    uint64_t ip = qemu_plugin_insn_vaddr(insn);
    bool returns = is_return(code, size);

    if (returns)
        on_memory(insn, on_return, (void *)ip);
    else if (is_call(code, size)) {
        struct call_site *c = keep(&(struct call_site){ ip, ip + size }, sizeof *c);
        on_memory(insn, on_call, c);
    } else if (size == 2 && code[0] == 0x48 && code[1] == 0xcf) {
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_iret, QEMU_PLUGIN_CB_NO_REGS, NULL);
        on_memory(insn, on_iret_load, (void *)ip);
    } else
        on_memory(insn, on_access, (void *)ip);

    if ((size == 3 && code[0] == 0x48 && code[1] == 0x0f && (code[2] == 0x07 || code[2] == 0x35)) ||
        (size == 2 && code[0] == 0x0f && (code[1] == 0x07 || code[1] == 0x35)))
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_sysret, QEMU_PLUGIN_CB_NO_REGS, (void *)ip);
    if (size == 3 && code[0] == 0x0f && code[1] == 0x01 && code[2] == 0xd8) {
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_vmrun, QEMU_PLUGIN_CB_NO_REGS, (void *)ip);
        if (vm_exits.n < 16)
            vm_exits.at[vm_exits.n++] = (const uint8_t *)qemu_plugin_insn_haddr(insn) + size;
    }
    hook_functions(insn, ip, returns);
}

static bool is_vm_exit(const struct qemu_plugin_insn *first)
{
    for (int i = 0; i < vm_exits.n; i++)
        if (vm_exits.at[i] == qemu_plugin_insn_haddr(first))
            return true;
    return false;
}

/* The callback for a block's beginning: one of the ways into the kernel, or plain code. */
static void instrument_start(struct qemu_plugin_tb *tb, struct block b)
{
    struct gate g = { b.address, 0, b };
    plugin_exec_cb cb = NULL;
    for (uint32_t vector = 0; vector < 256 && !cb; vector++)
        if (layout.gate[vector] == b.address) {
            g.vector = vector;
            cb = on_gate;
        }
    if (b.address == layout.syscall_entry || b.address == layout.compat_entry || b.address == layout.sysenter_entry) {
        g.vector = NONE;
        cb = on_syscall;
    }
    if (is_vm_exit(qemu_plugin_tb_get_insn(tb, 0)))
        cb = on_vmexit;
    if (cb)
        qemu_plugin_register_vcpu_tb_exec_cb(tb, cb, QEMU_PLUGIN_CB_NO_REGS, keep(&g, sizeof g));
    else
        qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, QEMU_PLUGIN_CB_NO_REGS, keep(&b, sizeof b));
}

static void find_mark(struct qemu_plugin_tb *tb);

static void translate_recording(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    uint64_t start = qemu_plugin_tb_vaddr(tb);
    size_t n = qemu_plugin_tb_n_insns(tb);
    if (one_cpu) {
        qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &vcpus[0].clock, n);
        if (start >= KERNEL_HALF)
            qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &vcpus[0].kernel_clock, n);
    }
    if (start < KERNEL_HALF) {
        if (!one_cpu)
            qemu_plugin_register_vcpu_tb_exec_cb(tb, on_user_block, QEMU_PLUGIN_CB_NO_REGS, (void *)n);
        find_mark(tb);
        return;
    }
    instrument_start(tb, (struct block){ start, text_page(start), n });
    for (size_t i = 0; i < n; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        uint64_t ip = qemu_plugin_insn_vaddr(insn), last = ip + qemu_plugin_insn_size(insn) - 1;
        if ((last ^ start) >> PAGE_SHIFT && ((ip ^ start) >> PAGE_SHIFT == 0 || (ip & (PAGE_SIZE - 1)) == 0))
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_fetch, QEMU_PLUGIN_CB_NO_REGS, (void *)last);
        instrument_insn(insn);
    }
}

/* ---- marks ---- */

static void translate_idle(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    if (qemu_plugin_tb_vaddr(tb) < KERNEL_HALF)
        find_mark(tb);
}

static void begin_recording(qemu_plugin_id_t id)
{
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate_recording);
}

static void end_recording(qemu_plugin_id_t id)
{
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate_idle);
}

static void on_begin(unsigned cpu, void *udata)
{
    stream_read_layout();
    guest_prepare();
    pages_prepare();
    shadow_prepare();
    table_prepare(&text_pages, 1 << 10);
    for (int i = 0; i < n_cpus; i++) {
        struct vcpu *v = &vcpus[i];
        v->mode = i == (int)cpu ? MODE_USER : MODE_KERNEL; /* the others are idle */
        v->epoch = 1;
        v->task_id = NONE;
        seen_grow(v);
        check_mm(v, i);
        uint32_t task = task_row(per_cpu_pointer(i, layout.current_task));
        if (task != NONE)
            emit_event(TASK_SWITCH, i, v->task_id = task, 0, 0);
    }
    qemu_plugin_reset(plugin, begin_recording);
}

static void on_end(unsigned cpu, void *udata)
{
    pages_resolve_all();
    stream_end(n_cpus);
    qemu_plugin_reset(plugin, end_recording);
}

static void on_hand_over(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *udata)
{
    struct qemu_plugin_hwaddr *at = qemu_plugin_get_hwaddr(info, vaddr);
    uint8_t *page = at ? guest_physical(qemu_plugin_hwaddr_phys_addr(at) & ~(PAGE_SIZE - 1)) : NULL;
    if (page)
        save_guest_data(page);
}

/* NOPL with a displacement that nobody else uses, before whatever it is about. */
static void find_mark(struct qemu_plugin_tb *tb)
{
    size_t n = qemu_plugin_tb_n_insns(tb);
    for (size_t i = 0; i < n; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        const uint8_t *code = qemu_plugin_insn_data(insn);
        uint32_t mark;
        if (qemu_plugin_insn_size(insn) != 8 || memcmp(code, "\x0f\x1f\x84\x00", 4))
            continue;
        memcpy(&mark, code + 4, 4);
        if (mark == MARK_BEGIN)
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_begin, QEMU_PLUGIN_CB_NO_REGS, NULL);
        else if (mark == MARK_END)
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_end, QEMU_PLUGIN_CB_NO_REGS, NULL);
        else if (mark == MARK_HAND_OVER && i + 1 < n)
            on_memory(qemu_plugin_tb_get_insn(tb, i + 1), on_hand_over, NULL);
    }
}

PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    const char *directory = NULL;
    int stream_fd = -1, layout_fd = -1;
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "directory=", 10))
            directory = argv[i] + 10;
        sscanf(argv[i], "stream=%d", &stream_fd);
        sscanf(argv[i], "layout=%d", &layout_fd);
    }
    if (!directory || stream_fd < 0 || layout_fd < 0 || !info->system_emulation || info->system.max_vcpus > MAX_CPUS) {
        fprintf(stderr, "asi recorder: needs directory=DIR,stream=FD,layout=FD, system emulation and at most %d CPUs\n", MAX_CPUS);
        return 1;
    }
    char memory[4200];
    snprintf(memory, sizeof memory, "%s/memory", directory);
    plugin = id;
    n_cpus = info->system.max_vcpus;
    one_cpu = n_cpus == 1;
    guest_map(memory);
    stream_open(directory, stream_fd, layout_fd);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate_idle);
    return 0;
}
