/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Kernel stacks without registers: a call instruction's store tells where its return address lies, so
 * each page of a kernel stack has a list of the calls in progress, oldest (highest address) first. A
 * call or return at an address ends every call below it, which also heals what never returned (a
 * task that exited, a fixed-up exception). Adjacent pages are one stack: every kernel stack ends in a
 * guard page. An interrupt stack continues in the stack it was entered from.
 */
#include <stdlib.h>

#include "recorder.h"

#define IRQ_STACK_SIZE 0x4000ull

struct call { uint64_t at, return_address; uint32_t id; };
struct segment { uint64_t page; uint32_t n, capacity; struct call *calls; };

static struct table segments, stacks;
static struct segment **segment_list;
static struct { uint32_t parent; uint64_t address; } *rows;
static uint32_t n_segments, n_rows, row_capacity;

void shadow_prepare(void)
{
    table_prepare(&segments, 1 << 12);
    table_prepare(&stacks, 1 << 16);
    n_rows = 1; /* row 0 is the empty stack */
}

static struct segment *find(uint64_t page)
{
    uint32_t *id = table_get(&segments, page, 0);
    return id ? segment_list[*id] : NULL;
}

static struct segment *find_or_make(uint64_t page)
{
    bool fresh;
    uint32_t *id = table_find(&segments, page, 0, &fresh);
    if (fresh) {
        *id = n_segments++;
        segment_list = realloc(segment_list, n_segments * sizeof *segment_list);
        segment_list[*id] = calloc(1, sizeof **segment_list);
        segment_list[*id]->page = page;
    }
    return segment_list[*id];
}

bool shadow_has(uint64_t vaddr)
{
    return find(vaddr >> PAGE_SHIFT) != NULL;
}

/* Unlike a stack's id this is the call's own for as long as it is in progress, whatever else runs. */
uint64_t shadow_slot(const struct vcpu *v, unsigned callers)
{
    for (const struct segment *s = v->segment; s; callers -= s->n, s = find(s->page + 1))
        if (callers < s->n)
            return s->calls[s->n - 1 - callers].at;
    return 0;
}

static bool on_irq_stack(unsigned cpu, uint64_t page)
{
    uint64_t top = layout.irq_stack[cpu];
    return top - 1 - (page << PAGE_SHIFT) < IRQ_STACK_SIZE;
}

static void end_calls_to(struct segment *s, uint64_t at)
{
    while (s->n && s->calls[s->n - 1].at <= at)
        s->n--;
}

static struct segment *move_to(struct vcpu *v, unsigned cpu, uint64_t page)
{
    struct segment *from = v->segment, *to = find_or_make(page);
    if (from && page == from->page - 1)
        to->n = 0;   /* grown into a lower page: what is listed there is stale */
    else if (from && page == from->page + 1)
        from->n = 0;
    else if (from && on_irq_stack(cpu, page) && !on_irq_stack(cpu, from->page))
        v->under = from->page;
    return v->segment = to;
}

void shadow_call(struct vcpu *v, unsigned cpu, uint64_t at, uint64_t return_address)
{
    struct segment *s = v->segment;
    if (!s || s->page != at >> PAGE_SHIFT)
        s = move_to(v, cpu, at >> PAGE_SHIFT);
    end_calls_to(s, at);
    if (s->n == s->capacity) {
        s->capacity = s->capacity ? s->capacity * 2 : 16;
        s->calls = realloc(s->calls, s->capacity * sizeof *s->calls);
    }
    s->calls[s->n++] = (struct call){ at, return_address, 0 };
}

void shadow_return(struct vcpu *v, unsigned cpu, uint64_t at)
{
    struct segment *s = v->segment;
    if (!s || s->page != at >> PAGE_SHIFT)
        s = move_to(v, cpu, at >> PAGE_SHIFT);
    end_calls_to(s, at);
}

uint32_t stack_leaf(uint32_t parent, uint64_t address)
{
    bool fresh;
    uint32_t *id = table_find(&stacks, address, parent, &fresh);
    if (fresh) {
        *id = n_rows;
        if (n_rows >= row_capacity) {
            row_capacity = row_capacity ? row_capacity * 2 : 1 << 16;
            rows = realloc(rows, row_capacity * sizeof *rows);
        }
        rows[n_rows].parent = parent;
        rows[n_rows++].address = address;
        emit((struct record){ .type = ROW_STACK, .arg = *id, .stack = parent, .addr = address });
    }
    return *id;
}

uint32_t stack_parent(uint32_t id)
{
    return id ? rows[id].parent : 0;
}

uint64_t stack_address(uint32_t id)
{
    return id ? rows[id].address : 0;
}

/*
 * The id of a call's row is kept with it: the calls above it cannot change while it is in progress.
 * Recursion goes one level per page of stack, and once more onto the stack under an interrupt.
 */
static uint32_t id_of_segment(struct vcpu *v, unsigned cpu, struct segment *s, bool interrupted)
{
    uint32_t i = s->n, id = 0;
    while (i && !s->calls[i - 1].id)
        i--;
    if (i)
        id = s->calls[i - 1].id;
    else {
        struct segment *older = find(s->page + 1);
        if (!older && !interrupted && on_irq_stack(cpu, s->page)) {
            older = find(v->under);
            interrupted = true;
        }
        if (older)
            id = id_of_segment(v, cpu, older, interrupted);
    }
    for (; i < s->n; i++)
        id = s->calls[i].id = stack_leaf(id, s->calls[i].return_address);
    return id;
}

uint32_t stack_now(struct vcpu *v, unsigned cpu)
{
    return v->segment ? id_of_segment(v, cpu, v->segment, false) : 0;
}

/* Whether the code at ip, or one of the innermost callers, is what is asked for; looked for from the inside. */
bool stack_in(struct vcpu *v, unsigned cpu, uint64_t ip, unsigned depth, bool (*is)(uint64_t address, void *), void *what)
{
    if (is(ip, what))
        return true;
    for (uint32_t id = stack_now(v, cpu); id && depth; id = rows[id].parent, depth--)
        if (is(rows[id].address - 1, what))
            return true;
    return false;
}
