/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Areas of the vmalloc and the modules region, found as the kernel finds them (mm/vmalloc.c, find_vmap_area()): in a
 * red-black tree by address; since 6.9 in one of several, whose number and distance the host has found out.
 */
#include "recorder.h"

#define MAX_DEPTH 64 /* a tree that another CPU is changing may lead in a circle */

static struct table areas;

void areas_prepare(void)
{
    table_prepare(&areas, 1 << 8);
}

static uint64_t find_in_tree(uint64_t root, uint64_t vaddr)
{
    uint64_t node = read_pointer(root);
    for (int depth = 0; node && depth < MAX_DEPTH; depth++) {
        uint64_t area = node - layout.vmap_rb_node;
        if (vaddr < read_pointer(area + layout.vmap_start))
            node = read_pointer(node + layout.rb_left);
        else if (vaddr >= read_pointer(area + layout.vmap_end))
            node = read_pointer(node + layout.rb_right);
        else
            return area;
    }
    return 0;
}

uint32_t area_of(uint64_t vaddr)
{
    bool fresh;
    uint64_t area = 0;
    if (vaddr < KERNEL_HALF || vaddr - layout.page_offset < guest_frames() << PAGE_SHIFT)
        return 0;
    for (uint64_t i = 0; i < layout.vmap_root_count && !area; i++)
        area = find_in_tree(layout.vmap_roots + i * layout.vmap_root_stride, vaddr);
    uint64_t vm = area ? read_pointer(area + layout.vmap_vm) : 0;
    if (!vm)
        return 0;
    uint64_t start = read_pointer(area + layout.vmap_start), caller = 0;
    const uint8_t *at = guest_virtual(vm + layout.vm_caller);
    if (at)
        caller = read64(at);
    uint32_t *id = table_find(&areas, start, caller, &fresh);
    if (fresh) {
        *id = areas.n;
        emit((struct record){ .type = ROW_AREA, .arg = *id, .x = caller, .stack = caller >> 32,
                              .clock = read_pointer(area + layout.vmap_end), .addr = start });
    }
    return *id;
}
