/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the kernel does with tasks, address spaces and pages, seen at a few of its functions. */
#include <stdlib.h>
#include <string.h>

#include "callbacks.h"

static uint64_t per_cpu_pointer(unsigned cpu, uint64_t symbol)
{
    return read_pointer(layout.per_cpu[cpu] + symbol);
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

static bool in_schedule(uint64_t address, void *unused)
{
    return address - layout.schedule_start < layout.schedule_end - layout.schedule_start;
}

static void write_mm_switch(struct vcpu *v, unsigned cpu)
{
    v->mm_switch_pending = false;
    emit_event(MM_SWITCH, cpu, v->loaded_mm_id, v->mm_switch_stack, v->switched_mm);
}

/*
 * A switch of mm in a context switch is written after the context switch: that is where ASI exits, on the outgoing
 * task's stack, before the mm changes. Elsewhere (exec, a flush asked of a CPU with a lazy TLB) it stands alone.
 */
void check_mm(struct vcpu *v, unsigned cpu, bool alone)
{
    uint64_t mm = per_cpu_pointer(cpu, layout.loaded_mm);
    if (mm <= 1) /* LOADED_MM_SWITCHING */
        return;
    uint32_t id = mm_id(mm);
    if (id == v->loaded_mm_id)
        return;
    v->loaded_mm_id = id;
    v->switched_mm = mm;
    v->mm_switch_stack = stack_now(v, cpu);
    forget_touches(v); /* the same user address is another page now, and other memory may be mapped */
    if (alone)
        write_mm_switch(v, cpu);
    else
        v->mm_switch_pending = true;
}

/*
 * The row of a task. It is sent again when the task has become another program, which is looked at when
 * it loads a new mm and when it has run for the last time: the last row counts.
 */
static uint32_t task_row(uint64_t task)
{
    static struct table ids;
    static struct { uint64_t comm[2]; uint32_t mm; } *rows;
    bool fresh;
    uint8_t *at = guest_virtual(task);
    if (!at)
        return NONE;
    if (!ids.slot)
        table_prepare(&ids, 1 << 8);
    uint32_t pid = read32(at + layout.task_pid), mm = mm_id(read64(at + layout.task_mm));
    uint64_t comm[2];
    memcpy(comm, at + layout.task_comm, sizeof comm);
    uint32_t *id = table_find(&ids, task, pid, &fresh);
    if (fresh) {
        *id = ids.n - 1;
        rows = realloc(rows, ids.n * sizeof *rows);
    }
    else if (!mm) /* exiting */
        mm = rows[*id].mm;
    if (fresh || memcmp(rows[*id].comm, comm, sizeof comm) || rows[*id].mm != mm) {
        memcpy(rows[*id].comm, comm, sizeof comm);
        rows[*id].mm = mm;
        struct record row = { .type = ROW_TASK, .arg = *id, .x = pid, .tgid = read32(at + layout.task_tgid) };
        memcpy(row.name, comm, sizeof row.name);
        emit(row);
        emit((struct record){ .type = ROW_TASK_MM, .arg = *id, .x = mm });
    }
    return *id;
}

uint32_t current_task_row(unsigned cpu)
{
    return task_row(vcpus[cpu].task = per_cpu_pointer(cpu, layout.current_task));
}

void on_mm_switch(unsigned cpu, void *udata)
{
    struct vcpu *v = &vcpus[cpu];
    if (v->mode != MODE_KERNEL)
        return;
    bool in_switch = stack_in(v, cpu, 0, 3, in_schedule, NULL);
    check_mm(v, cpu, !in_switch);
    if (!in_switch)
        current_task_row(cpu);
}

/*
 * A task may be preempted inside of a trace event handler, and go on in it on another CPU: what belongs to its handlers goes
 * with it. Since 7.0 the handler itself, not its caller, holds preemption off (include/trace/trace_events.h), so its last
 * call may be of the scheduler, by way of preempt_schedule_notrace().
 */
static struct suspended { uint64_t task; bool muted; uint32_t mute_stack; struct stores stores[4]; } *suspended;
static uint32_t n_suspended, most_suspended;

static void suspend_handlers(const struct vcpu *v)
{
    if (!v->muted && !v->mute_stack)
        return;
    if (n_suspended == most_suspended)
        suspended = realloc(suspended, ++most_suspended * sizeof *suspended);
    struct suspended *s = &suspended[n_suspended++];
    *s = (struct suspended){ .task = v->task, .muted = v->muted, .mute_stack = v->mute_stack };
    memcpy(s->stores, v->stores, sizeof s->stores);
}

static void resume_handlers(struct vcpu *v)
{
    v->muted = false;
    v->mute_stack = 0;
    for (uint32_t i = 0; i < n_suspended; i++)
        if (suspended[i].task == v->task) {
            v->muted = suspended[i].muted;
            v->mute_stack = suspended[i].mute_stack;
            memcpy(v->stores, suspended[i].stores, sizeof v->stores);
            suspended[i] = suspended[--n_suspended];
            return;
        }
}

/* The last that runs on the outgoing task's stack (__switch_to_asm()). */
void on_switch_begin(unsigned cpu, void *udata)
{
    struct vcpu *v = &vcpus[cpu];
    if (v->mode == MODE_KERNEL) {
        v->switching = true;
        v->switched_from = stack_now(v, cpu);
    }
}

void on_task_switch(unsigned cpu, void *udata)
{
    struct vcpu *v = &vcpus[cpu];
    if (v->mode != MODE_KERNEL)
        return;
    pages_settle(cpu);
    if (v->task)
        task_row(v->task);
    suspend_handlers(v);
    uint32_t id = current_task_row(cpu);
    resume_handlers(v);
    if (id != NONE && id != v->task_id) {
        v->task_id = id;
        emit_event(TASK_SWITCH, cpu, id, v->switching ? v->switched_from : stack_now(v, cpu), 0);
    }
    v->switching = false;
    check_mm(v, cpu, false);
    if (v->mm_switch_pending)
        write_mm_switch(v, cpu);
}

/* ---- TLB flushes ---- */

static bool in_flusher(uint64_t address, void *found)
{
    for (int i = 0; i < layout.n_flushers; i++)
        if (address - layout.flusher[i].start < layout.flusher[i].end - layout.flusher[i].start) {
            *(const struct flusher **)found = &layout.flusher[i];
            return true;
        }
    return address - layout.mm_hook_start < layout.mm_hook_end - layout.mm_hook_start; /* a switch of mm writes CR3, too */
}

void on_flusher_begin(unsigned cpu, void *udata)
{
    vcpus[cpu].flushed = false;
}

/*
 * INVLPG, or another instruction that flushes more than one page: what happens, whichever functions the compiler has
 * inlined, and whatever was asked for. flush_tlb_func() may find nothing left to do, or that a CPU with a lazy TLB had
 * better switch to init_mm.
 */
void on_flush(unsigned cpu, void *udata)
{
    struct vcpu *v = &vcpus[cpu];
    const struct flush_site *site = udata;
    const struct flusher *by = NULL;
    if (v->mode != MODE_KERNEL || v->flushed || v->muted)
        return;
    if (!stack_in(v, cpu, site->address, 4, in_flusher, &by) || !by)
        return;
    v->flushed = true;
    emit_event(TLB_FLUSH, cpu, (by->kernel ? FLUSH_KERNEL : 0) | (site->range ? FLUSH_RANGE : 0), stack_now(v, cpu), 0);
}

/*
 * The handlers of the trace events mm_page_alloc and mm_page_free store the event's fields; the
 * events are on only for this recording, so what they touch is not the workload's.
 */
static struct stores *stores_of(struct vcpu *v)
{
    return &v->stores[__builtin_popcount(v->mute_stack) & 3];
}

/* preempt_schedule_notrace(): what runs until it returns is not the handler that it may have been called from. */
void on_preempt_begin(unsigned cpu, void *udata)
{
    struct vcpu *v = &vcpus[cpu];
    if (v->mode != MODE_KERNEL)
        return;
    v->mute_stack = v->mute_stack << 1 | v->muted;
    v->muted = false;
}

void on_preempt_end(unsigned cpu, void *udata)
{
    struct vcpu *v = &vcpus[cpu];
    if (v->mode != MODE_KERNEL)
        return;
    v->muted = v->mute_stack & 1;
    v->mute_stack >>= 1;
}

/*
 * The event has come; each of the kernel's tracing instances that wants it has its handler called in turn. By where on the
 * stack __traceiter_...() returns to its caller, as other events may come before it does: in an interrupt, in another
 * instance's handler, in another task.
 */
static bool *written(uint64_t slot)
{
    static struct table slots;
    static bool *known;
    bool fresh;
    if (!slots.slot)
        table_prepare(&slots, 1 << 8);
    uint32_t *id = table_find(&slots, slot, 1, &fresh);
    if (fresh) {
        *id = slots.n - 1;
        known = realloc(known, slots.n * sizeof *known);
        known[*id] = false;
    }
    return &known[*id];
}

void on_event_begin(unsigned cpu, void *udata)
{
    struct vcpu *v = &vcpus[cpu];
    if (v->mode == MODE_KERNEL)
        *written(shadow_slot(v, 0)) = false;
}

void on_handler_begin(unsigned cpu, void *udata)
{
    struct vcpu *v = &vcpus[cpu];
    if (v->mode != MODE_KERNEL)
        return;
    if (v->muted) /* the end of another one went unseen */
        count_lost(LOST_ALLOCATION);
    v->muted = v->has_handled = true;
    stores_of(v)->n = 0;
}

void on_handler_store(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *ip)
{
    struct stores *s = stores_of(&vcpus[cpu]);
    if (vcpus[cpu].in_block && qemu_plugin_mem_is_store(info) && !shadow_has(vaddr) && s->n < sizeof s->addr / sizeof *s->addr)
        s->addr[s->n++] = vaddr;
}

/* The event is where one store, taken for that of its first field, has others at its second and third. */
static uint8_t *find_event(const struct stores *s, uint64_t first, uint64_t second, uint64_t third)
{
    for (int i = 0; i < s->n; i++) {
        uint64_t event = s->addr[i] - first;
        int found = 0;
        for (int j = 0; j < s->n; j++)
            found |= (s->addr[j] == event + second) | (s->addr[j] == event + third) << 1;
        if (found == 3)
            return guest_virtual(event);
    }
    return NULL;
}

/*
 * Whose event it is: the handler's caller but for __traceiter_...(). That is not there if the handler is the only one; if
 * it is, another handler may have written this event already. False if there is nothing to write.
 */
static bool end_handler(struct vcpu *v, unsigned cpu, uint64_t start, uint64_t end, uint32_t *caller)
{
    unsigned listed = 0;
    if (v->mode != MODE_KERNEL)
        return false;
    if (!v->muted) { /* its beginning went unseen, unless the recording has begun in the middle of it */
        if (v->has_handled)
            count_lost(LOST_ALLOCATION);
        return false;
    }
    v->muted = false;
    *caller = stack_now(v, cpu);
    for (; stack_address(*caller) - start < end - start; *caller = stack_parent(*caller))
        listed++;
    if (!listed)
        return true;
    bool *is_written = written(shadow_slot(v, listed)), is_new = !*is_written;
    *is_written = true;
    return is_new;
}

void on_alloc_end(unsigned cpu, void *udata)
{
    struct vcpu *v = &vcpus[cpu];
    uint32_t stack;
    if (!end_handler(v, cpu, layout.alloc_iter_start, layout.alloc_iter_end, &stack))
        return;
    uint8_t *event = find_event(stores_of(v), layout.alloc_pfn, layout.alloc_order, layout.alloc_gfp);
    if (!event) {
        count_lost(LOST_ALLOCATION);
        return;
    }
    uint64_t frame = read64(event + layout.alloc_pfn);
    if (frame == UINT64_MAX) /* a failed allocation */
        return;
    uint32_t order = read32(event + layout.alloc_order);
    uint64_t gfp = layout.alloc_gfp_bytes == 8 ? read64(event + layout.alloc_gfp) : read32(event + layout.alloc_gfp);
    uint32_t id = page_allocated(frame, order, gfp, read32(event + layout.alloc_migratetype), stack);
    for (uint64_t i = 0; i < 1ull << order; i++)
        forget_frame(frame + i);
    emit_event(PAGE_ALLOC, cpu, id, stack, 0);
}

void on_free_end(unsigned cpu, void *udata)
{
    struct vcpu *v = &vcpus[cpu];
    uint32_t stack;
    if (!end_handler(v, cpu, layout.free_iter_start, layout.free_iter_end, &stack))
        return;
    uint8_t *event = find_event(stores_of(v), layout.free_pfn, layout.free_order, layout.free_order);
    if (!event) {
        count_lost(LOST_ALLOCATION);
        return;
    }
    emit_event(PAGE_FREE, cpu, page_freed(read64(event + layout.free_pfn), read32(event + layout.free_order)), stack, 0);
}

/*
 * alloc_pages_bulk() has no event. It tells its caller of a page by storing a pointer to its struct page; it stores such
 * pointers in its own stack frame, too, and what it stores in lists points into one. The page that it falls back on has
 * had an event.
 */
void on_bulk_store(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *ip)
{
    struct vcpu *v = &vcpus[cpu];
    if (v->mode != MODE_KERNEL || !v->in_block || !qemu_plugin_mem_is_store(info) || qemu_plugin_mem_size_shift(info) != 3)
        return;
    if (shadow_slot(v, 0) - vaddr < PAGE_SIZE)
        return;
    uint64_t offset = read_pointer(vaddr) - layout.vmemmap, frame = offset / layout.page_size;
    if (offset % layout.page_size || frame >= guest_frames() || page_has_allocation(frame))
        return;
    uint32_t stack = stack_leaf(stack_now(v, cpu), (uint64_t)ip);
    uint32_t id = page_allocated(frame, 0, UINT64_MAX, 0xff, stack);
    forget_frame(frame);
    emit_event(PAGE_ALLOC, cpu, id, stack, 0);
}
