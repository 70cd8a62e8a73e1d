/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What each touched page is. A row of the pages table is one incarnation of a frame: from one
 * allocation to the next. Its kind comes from struct page as it stands at the touch; one that is not
 * specific yet (a page just allocated) is looked at again: at its next touch, when the round trip in which it was touched
 * ends or another task runs (by then it is what it was allocated for), and when it is freed (by then it may be nothing
 * any more).
 *
 * The page allocator clears a page before its trace event says which allocation it belongs to. So a
 * frame without a known allocation keeps its row when the event comes, and the row is completed.
 */
#include <stdlib.h>
#include <string.h>

#include "recorder.h"

struct frame { uint32_t page, allocation; uint8_t kind, order; uint64_t about; }; /* of an allocation the first has the order */
#define NOT_FIRST 0xff

#define MAX_UNSETTLED 1024

static struct frame *frames;
static struct { uint32_t frame[MAX_UNSETTLED], n; } unsettled[MAX_CPUS]; /* frames that a CPU is to look at again */
static uint32_t n_pages, n_allocations, n_places;
static struct table places, names;

void pages_prepare(void)
{
    free(frames);
    frames = malloc(guest_frames() * sizeof *frames);
    for (uint64_t i = 0; i < guest_frames(); i++)
        frames[i] = (struct frame){ .page = NONE, .allocation = NONE };
    table_prepare(&places, 1 << 16);
    table_prepare(&names, 1 << 8);
    n_pages = n_allocations = n_places = 0;
}

/* A kmem_cache may be gone when the recording ends, so its name is sent when it is first seen. */
static void name_cache(uint64_t cache)
{
    bool fresh;
    uint32_t *id = table_find(&names, cache, 1, &fresh);
    if (!fresh)
        return;
    *id = 0;
    char text[32] = { 0 };
    const uint8_t *name = guest_virtual(read_pointer(cache + layout.cache_name));
    if (name)
        memcpy(text, name, strnlen((const char *)name, sizeof text));
    for (int part = 0; part < 2; part++) {
        struct record r = { .type = ROW_NAME, .aux = part, .arg = cache, .x = cache >> 32 };
        memcpy(r.name, text + 16 * part, sizeof r.name);
        emit(r);
    }
}

/*
 * The head of a compound page's tail. compound_head, compound_info since 7.1 or 7.2, holds in a tail 1 plus
 * the head's address or, where struct pages are aligned, the mask that makes it of the tail's address
 * (include/linux/page-flags.h, _compound_head()). The two cannot be confused: a mask is no address in vmemmap.
 */
static uint64_t head_of(uint64_t frame, const uint8_t *page)
{
    uint64_t word = read64(page + layout.page_compound), start = layout.vmemmap;
    if (!(word & 1))
        return frame;
    if (word - 1 - start < guest_frames() * layout.page_size)
        return (word - 1 - start) / layout.page_size;
    return (((start + frame * layout.page_size) & (word - 1)) - start) / layout.page_size;
}

static bool is_type(uint32_t type, uint64_t mask, uint64_t value)
{
    return mask && (type & mask) == value;
}

static bool is_hugetlb(uint64_t head, const uint8_t *page)
{
    if (layout.type_hugetlb_mask)
        return is_type(read32(page + layout.page_type), layout.type_hugetlb_mask, layout.type_hugetlb_value);
    if (!layout.second_hugetlb_mask || !(read64(page + layout.page_flags) & layout.flag_head))
        return false;
    const uint8_t *second = struct_page(head + 1);
    return second && (read64(second + layout.second_hugetlb_offset) & layout.second_hugetlb_mask) == layout.second_hugetlb_value;
}

/* By struct page (include/linux/mm_types.h, page-flags.h), whose form the host has found out. */
static enum page_kind classify(uint64_t frame, uint64_t *about)
{
    const uint8_t *page = struct_page(frame);
    *about = 0;
    if (!page)
        return KIND_UNKNOWN;
    uint64_t head = head_of(frame, page);
    page = struct_page(head);
    if (!page)
        return KIND_UNKNOWN;
    uint64_t flags = read64(page + layout.page_flags);
    uint64_t mapping = read64(page + layout.page_mapping);
    uint32_t type = read32(page + layout.page_type);
    if (flags & layout.flag_reserved)
        return KIND_RESERVED;
    if (flags & layout.flag_slab || is_type(type, layout.type_slab_mask, layout.type_slab_value)) {
        *about = read64(page + layout.page_slab_cache);
        return KIND_SLAB;
    }
    if (is_type(type, layout.type_table_mask, layout.type_table_value))
        return KIND_PAGE_TABLE;
    if (is_type(type, layout.type_buddy_mask, layout.type_buddy_value))
        return KIND_FREE;
    if (is_hugetlb(head, page))
        return KIND_HUGETLB;
    if (mapping & 1) /* PAGE_MAPPING_ANON, since 6.17 FOLIO_MAPPING_ANON; with bit 1 it is KSM's */
        return KIND_ANON;
    if (mapping && !(mapping & 3)) {
        uint64_t inode = read_pointer(mapping + layout.mapping_host);
        uint64_t super = inode ? read_pointer(inode + layout.inode_sb) : 0;
        *about = super ? read_pointer(super + layout.sb_type) : 0;
        return super ? KIND_PAGE_CACHE : KIND_KERNEL;
    }
    return KIND_KERNEL;
}

static bool specific(enum page_kind kind)
{
    return kind != KIND_UNKNOWN && kind != KIND_KERNEL && kind != KIND_FREE;
}

static void report(uint64_t frame)
{
    struct frame *f = &frames[frame];
    if (f->kind == KIND_SLAB)
        name_cache(f->about);
    emit((struct record){ .type = ROW_PAGE, .arg = f->page, .x = frame, .aux = f->kind,
                          .stack = f->allocation, .addr = f->about });
}

/* Bring the frame's row up to date with struct page, and begin a new one where it became another thing. */
static void look(uint64_t frame)
{
    struct frame *f = &frames[frame];
    uint64_t about;
    enum page_kind kind = classify(frame, &about);
    if (f->page != NONE && (!specific(kind) || (kind == f->kind && about == f->about)))
        return;
    if (f->page == NONE || specific(f->kind))
        f->page = n_pages++;
    f->kind = kind;
    f->about = about;
    report(frame);
}

static void look_again_later(unsigned cpu, uint64_t frame)
{
    uint32_t n = unsettled[cpu].n;
    if (n < MAX_UNSETTLED && (!n || unsettled[cpu].frame[n - 1] != frame))
        unsettled[cpu].frame[unsettled[cpu].n++] = frame;
}

void pages_settle(unsigned cpu)
{
    while (unsettled[cpu].n) {
        uint32_t frame = unsettled[cpu].frame[--unsettled[cpu].n];
        if (frames[frame].page != NONE && !specific(frames[frame].kind))
            look(frame);
    }
}

uint32_t place_of(unsigned cpu, uint64_t vaddr, uint64_t frame)
{
    bool fresh;
    uint32_t page = NONE;
    uint64_t vpage = vaddr >> PAGE_SHIFT;
    if (frame < guest_frames()) {
        struct frame *f = &frames[frame];
        if (f->page == NONE || f->kind != KIND_STACK) {
            look(frame);
            if (!specific(f->kind) && shadow_has(vaddr)) {
                f->kind = KIND_STACK;
                report(frame);
            }
            if (!specific(f->kind))
                look_again_later(cpu, frame);
        }
        page = f->page;
    }
    uint32_t *id = table_find(&places, vpage + 1, page, &fresh);
    if (fresh) {
        *id = n_places++;
        emit((struct record){ .type = ROW_PLACE, .arg = *id, .x = page, .stack = area_of(vaddr), .addr = vpage << PAGE_SHIFT });
    }
    return *id;
}

static uint32_t new_allocation(uint64_t frame, unsigned order, uint64_t gfp, unsigned migratetype, uint32_t stack)
{
    emit((struct record){ .type = ROW_ALLOCATION, .arg = n_allocations, .x = frame,
                          .aux = order | migratetype << 8, .stack = stack, .addr = gfp });
    return n_allocations++;
}

uint32_t page_allocated(uint64_t frame, unsigned order, uint64_t gfp, unsigned migratetype, uint32_t stack)
{
    uint32_t id = new_allocation(frame, order, gfp, migratetype, stack);
    for (uint64_t i = frame; i < frame + (1ull << order) && i < guest_frames(); i++) {
        struct frame *f = &frames[i];
        bool known = f->allocation != NONE;
        f->allocation = id;
        f->order = i == frame ? order : NOT_FIRST;
        if (known)
            f->page = NONE; /* its free went unseen */
        else if (f->page != NONE) {
            f->kind = KIND_KERNEL;
            report(i);
        }
    }
    return id;
}

bool page_has_allocation(uint64_t frame)
{
    return frame < guest_frames() && frames[frame].allocation != NONE;
}

/* What was allocated before the recording has a row for its free, and so has each part of what has been split. */
uint32_t page_freed(uint64_t frame, unsigned order)
{
    bool whole = frame < guest_frames() && frames[frame].order == order;
    uint32_t id = whole ? frames[frame].allocation : NONE;
    if (id == NONE)
        id = new_allocation(frame, order, UINT64_MAX, 0xff, 0);
    for (uint64_t i = frame; i < frame + (1ull << order) && i < guest_frames(); i++) {
        if (frames[i].page != NONE && !specific(frames[i].kind))
            look(i);
        frames[i] = (struct frame){ .page = NONE, .allocation = NONE };
    }
    return id;
}

void pages_resolve_all(void)
{
    for (uint64_t i = 0; i < guest_frames(); i++)
        if (frames[i].page != NONE && !specific(frames[i].kind))
            look(i);
}
