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

#include "../guest/asi_mark.h"
#include "../guest/marker.h"
#include "callbacks.h"

struct vcpu *vcpus;
bool counts_inline;
int n_cpus;

static struct table text_page_ids;
struct text_page *text_pages;

/* ---- translation ---- */

static uint32_t text_page(uint64_t address)
{
    bool fresh;
    uint32_t *id = table_find(&text_page_ids, address >> PAGE_SHIFT, 0, &fresh);
    if (fresh) {
        *id = text_page_ids.n;
        text_pages = realloc(text_pages, (*id + 1) * sizeof *text_pages);
        text_pages[*id] = (struct text_page){ .page = address >> PAGE_SHIFT };
    }
    return *id;
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

/* The last of a function may be another's call, made as a jump; where the kernel has return thunks, a return is one, too. */
static bool jumps_out(const uint8_t *code, size_t size, uint64_t ip, uint64_t start, uint64_t end)
{
    int32_t distance;
    if (size != 5 || code[0] != 0xe9)
        return false;
    memcpy(&distance, code + 1, 4);
    return ip + size + distance - start >= end - start;
}

/* Where a direct call goes; 0 for an indirect one. */
static uint64_t call_target(const uint8_t *code, size_t size, uint64_t ip)
{
    int32_t distance;
    if (size < 5 || code[size - 5] != 0xe8)
        return 0;
    memcpy(&distance, code + size - 4, 4);
    return ip + size + distance;
}

static bool in_range(uint64_t address, uint64_t start, uint64_t end)
{
    return address - start < end - start;
}

static void hook_handlers(struct qemu_plugin_insn *insn, uint64_t ip, const uint8_t *code, size_t size, bool returns)
{
    bool alloc = in_range(ip, layout.alloc_start, layout.alloc_end);
    if (!alloc && !in_range(ip, layout.free_start, layout.free_end))
        return;
    uint64_t start = alloc ? layout.alloc_start : layout.free_start, end = alloc ? layout.alloc_end : layout.free_end;
    if (ip == start)
        api_on_insn(insn, on_handler_begin, NULL);
    if (returns || jumps_out(code, size, ip, start, end))
        api_on_insn(insn, alloc ? on_alloc_end : on_free_end, NULL);
    else
        api_on_memory(insn, on_handler_store, NULL);
}

/*
 * Instructions that flush the TLB (SDM volume 3, 4.10.4.1): INVLPG; INVPCID, and writes to CR3 and CR4. In a range flush
 * the kernel uses INVLPG; with PTI, INVPCID follows it for the user's half.
 */
static bool is_flush(const uint8_t *code, size_t size, bool *range)
{
    size_t i = size > 1 && (code[0] & 0xf0) == 0x40; /* REX */
    *range = size >= i + 3 && code[i] == 0x0f && code[i + 1] == 0x01 && (code[i + 2] & 0x38) == 0x38 && code[i + 2] < 0xc0;
    bool to_cr = size == i + 3 && code[i] == 0x0f && code[i + 1] == 0x22;
    bool to_cr3_or_4 = to_cr && ((code[i + 2] >> 3 & 7) == 3 || (code[i + 2] >> 3 & 7) == 4);
    return *range || to_cr3_or_4 || (size >= 5 && !memcmp(code, "\x66\x0f\x38\x82", 4));
}

static void hook_functions(struct qemu_plugin_insn *insn, uint64_t ip, const uint8_t *code, size_t size, bool returns)
{
    bool range;
    if (ip == layout.alloc_iter_start || ip == layout.free_iter_start)
        api_on_insn(insn, on_event_begin, NULL);
    if (ip == layout.switch_hook)
        api_on_insn(insn, on_switch_begin, NULL);
    if (ip == layout.task_hook)
        api_on_insn(insn, on_task_switch, NULL);
    if (ip == layout.preempt_start)
        api_on_insn(insn, on_preempt_begin, NULL);
    if (in_range(ip, layout.preempt_start, layout.preempt_end) &&
        (returns || jumps_out(code, size, ip, layout.preempt_start, layout.preempt_end)))
        api_on_insn(insn, on_preempt_end, NULL);
    if (in_range(ip, layout.mm_hook_start, layout.mm_hook_end) &&
        (returns || jumps_out(code, size, ip, layout.mm_hook_start, layout.mm_hook_end)))
        api_on_insn(insn, on_mm_switch, NULL);
    for (int i = 0; i < layout.n_flushers; i++)
        if (ip == layout.flusher[i].start)
            api_on_insn(insn, on_flusher_begin, NULL);
    if (is_flush(code, size, &range)) {
        struct flush_site site = { ip, range };
        api_on_insn(insn, on_flush, keep(&site, sizeof site));
    }
    if (in_range(ip, layout.bulk_start, layout.bulk_end))
        api_on_memory(insn, on_bulk_store, (void *)ip);
    hook_handlers(insn, ip, code, size, returns);
}

/* Where VMRUN goes on after a VM exit: by host address, so that a nested guest's code cannot be taken for it. */
static struct { const uint8_t *at[16]; int n; } vm_exits;

/*
 * VMRUN, VMLOAD and VMSAVE reach the VMCB by its physical address: no mapping is involved. They have a callback all
 * the same, as without one of their own QEMU 7.2 goes on calling that of an earlier instruction.
 */
static void on_physical_access(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t address, void *ip)
{
}

static void instrument_insn(struct qemu_plugin_insn *insn)
{
    uint8_t code[MOST_CODE_BYTES];
    size_t size = api_code(insn, code);
    uint64_t ip = qemu_plugin_insn_vaddr(insn);
    bool returns = is_return(code, size);
    bool svm = size == 3 && code[0] == 0x0f && code[1] == 0x01 && code[2] >= 0xd8 && code[2] <= 0xdf;

    if (returns)
        api_on_memory_direct(insn, on_return, (void *)ip);
    else if (is_call(code, size)) {
        uint64_t target = call_target(code, size, ip);
        bool saves_registers = target && (target == layout.error_entry || target == layout.paranoid_entry);
        struct call_site *c = keep(&(struct call_site){ ip, ip + size, saves_registers }, sizeof *c);
        api_on_memory_direct(insn, on_call, c);
    } else if (size == 2 && code[0] == 0x48 && code[1] == 0xcf) {
        api_on_insn(insn, on_iret, NULL);
        api_on_memory(insn, on_iret_load, (void *)ip);
    } else if (svm)
        api_on_memory(insn, code[2] == 0xda ? on_vmload : on_physical_access, (void *)ip);
    else
        api_on_memory_direct(insn, api_tells_cpu() ? on_access : on_access_by_running, (void *)ip);

    if ((size == 3 && code[0] == 0x48 && code[1] == 0x0f && (code[2] == 0x07 || code[2] == 0x35)) ||
        (size == 2 && code[0] == 0x0f && (code[1] == 0x07 || code[1] == 0x35)))
        api_on_insn(insn, on_sysret, (void *)ip);
    if (svm && code[2] == 0xd8) {
        api_on_insn(insn, on_vmrun, (void *)ip);
        if (vm_exits.n < 16 && qemu_plugin_insn_haddr(insn))
            vm_exits.at[vm_exits.n++] = (const uint8_t *)qemu_plugin_insn_haddr(insn) + size;
    }
    hook_functions(insn, ip, code, size, returns);
}

static bool is_vm_exit(const struct qemu_plugin_insn *first)
{
    for (int i = 0; i < vm_exits.n; i++)
        if (vm_exits.at[i] == qemu_plugin_insn_haddr(first))
            return true;
    return false;
}

/* The callback for a block's beginning: one of the ways into the kernel, or plain code. */
static void instrument_start(struct qemu_plugin_tb *tb, uint64_t start, uint64_t block)
{
    struct gate g = { start, 0, block };
    plugin_exec_cb cb = NULL;
    for (uint32_t vector = 0; vector < 256 && !cb; vector++)
        if (layout.gate[vector] == start) {
            g.vector = vector;
            cb = on_gate;
        }
    if (start == layout.syscall_entry || start == layout.compat_entry || start == layout.sysenter_entry) {
        g.vector = NONE;
        cb = on_syscall;
    }
    if (is_vm_exit(qemu_plugin_tb_get_insn(tb, 0)))
        cb = on_vmexit;
    if (cb)
        api_on_start(tb, cb, keep(&g, sizeof g));
    else
        api_on_start_direct(tb, api_tells_cpu() ? on_block : on_block_of_running, (void *)block);
}

static void find_mark(struct qemu_plugin_tb *tb);

static void instrument_insns(struct qemu_plugin_tb *tb, uint64_t start)
{
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        uint64_t ip = qemu_plugin_insn_vaddr(insn), last = ip + qemu_plugin_insn_size(insn) - 1;
        if ((last ^ start) >> PAGE_SHIFT && ((ip ^ start) >> PAGE_SHIFT == 0 || (ip & (PAGE_SIZE - 1)) == 0))
            api_on_insn(insn, on_fetch, (void *)last);
        instrument_insn(insn);
    }
}

/* A block is counted after what else happens at its beginning: QEMU 7.2 calls first, then counts. */
static void translate_recording(struct qemu_plugin_tb *tb)
{
    uint64_t start = qemu_plugin_tb_vaddr(tb);
    size_t n = qemu_plugin_tb_n_insns(tb);
    bool kernel = start >= KERNEL_HALF;
    if (kernel)
        instrument_start(tb, start, BLOCK(text_page(start), start, counts_inline ? 0 : n));
    if (counts_inline)
        api_count(tb, n, kernel);
    else if (!kernel)
        api_on_start_direct(tb, on_user_block, (void *)n);
    if (kernel)
        instrument_insns(tb, start);
    else
        find_mark(tb);
}

/* ---- marks ---- */

static void translate_idle(struct qemu_plugin_tb *tb)
{
    if (qemu_plugin_tb_vaddr(tb) < KERNEL_HALF)
        find_mark(tb);
}

static void on_begin(unsigned cpu, void *udata)
{
    vcpus = api_vcpus();
    stream_read_layout();
    guest_prepare();
    pages_prepare();
    shadow_prepare();
    table_prepare(&text_page_ids, 1 << 10);
    for (int i = 0; i < n_cpus; i++) {
        struct vcpu *v = &vcpus[i];
        v->mode = i == (int)cpu ? MODE_USER : MODE_KERNEL; /* the others are idle */
        v->task_id = NONE;
        seen_grow(v);
        forget_touches(v);
        check_mm(v, i, true);
        uint32_t task = current_task_row(i);
        if (task != NONE)
            emit_event(TASK_SWITCH, i, v->task_id = task, 0, 0);
    }
    api_start_again(translate_recording);
}

/*
 * Where the callbacks have to stay, they do nothing: QEMU 7.2 keeps a CPU's pointer to the memory callbacks of an instruction
 * that ended its block, such as IRET, and starting again would free what it points to.
 */
static void on_end(unsigned cpu, void *udata)
{
    if (!vcpus)
        return;
    pages_resolve_all();
    stream_end(n_cpus);
    for (int i = 0; i < n_cpus; i++)
        vcpus[i].mode = MODE_ENDED;
    if (api_can_start_again())
        api_start_again(translate_idle);
}

static void on_hand_over(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *udata)
{
    struct qemu_plugin_hwaddr *at = qemu_plugin_get_hwaddr(info, vaddr);
    uint8_t *page = at ? guest_physical(qemu_plugin_hwaddr_phys_addr(at) & ~(PAGE_SIZE - 1)) : NULL;
    if (page)
        exchange((struct handed_over *)page);
}

/* Instructions with a displacement that nobody else uses: see guest/marker.h and guest/asi_mark.h. */
static void find_mark(struct qemu_plugin_tb *tb)
{
    size_t n = qemu_plugin_tb_n_insns(tb);
    for (size_t i = 0; i < n; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        uint8_t code[MOST_CODE_BYTES];
        size_t size = api_code(insn, code);
        uint32_t mark;
        if (size == 6 && code[0] == 0x8a && code[1] == 0x80) {
            memcpy(&mark, code + 2, 4);
            if (mark == MARK_HAND_OVER)
                api_on_memory(insn, on_hand_over, NULL);
            else if (mark == ASI_MARK_BEGIN || mark == ASI_MARK_END)
                api_on_memory(insn, on_phase_mark, (void *)(uintptr_t)(mark == ASI_MARK_END));
        }
        if (size != 8 || memcmp(code, "\x0f\x1f\x84\x00", 4))
            continue;
        memcpy(&mark, code + 4, 4);
        if (mark == MARK_BEGIN)
            api_on_insn(insn, on_begin, NULL);
        else if (mark == MARK_END)
            api_on_insn(insn, on_end, NULL);
    }
}

int recorder_install(int cpus, int argc, char **argv)
{
    const char *directory = NULL;
    struct pipes pipes = { -1, -1, -1, -1, -1 };
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "directory=", 10))
            directory = argv[i] + 10;
        sscanf(argv[i], "stream=%d", &pipes.stream);
        sscanf(argv[i], "layout=%d", &pipes.layout);
        sscanf(argv[i], "in=%d", &pipes.in);
        sscanf(argv[i], "out=%d", &pipes.out);
        sscanf(argv[i], "err=%d", &pipes.err);
    }
    if (!directory || pipes.stream < 0 || pipes.layout < 0 || pipes.in < 0 || pipes.out < 0 || pipes.err < 0) {
        fprintf(stderr, "asi recorder: needs directory=DIR,stream=FD,layout=FD,in=FD,out=FD,err=FD\n");
        return 1;
    }
    char memory[4200];
    snprintf(memory, sizeof memory, "%s/memory", directory);
    n_cpus = cpus;
    counts_inline = n_cpus == 1 && !api_option(argc, argv, "count=callback");
    guest_map(memory);
    stream_open(directory, pipes);
    api_translate(translate_idle);
    return 0;
}
