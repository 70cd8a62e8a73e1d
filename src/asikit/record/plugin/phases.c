/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The workload's own marks: where a phase of it begins and ends (see guest/asi_mark.h). */
#include <string.h>

#include "../guest/asi_mark.h"
#include "callbacks.h"

#define PARTS (ASI_MARK_BYTES / 16)

/*
 * A mark's load. QEMU 7.2 may call this for other accesses too, if the load ended its block (see by_code() in touches.c):
 * those are of the kernel's half, or stores, or not where a name can lie.
 */
void on_phase_mark(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *end)
{
    if (!vcpus || vcpus[cpu].mode != MODE_USER || vaddr >= KERNEL_HALF || vaddr % ASI_MARK_BYTES || qemu_plugin_mem_is_store(info))
        return;
    struct qemu_plugin_hwaddr *at = qemu_plugin_get_hwaddr(info, vaddr);
    const uint8_t *text = at && !qemu_plugin_hwaddr_is_io(at) ? guest_physical(qemu_plugin_hwaddr_phys_addr(at)) : NULL;
    if (!text || !text[0] || text[ASI_MARK_BYTES - 1])
        return;
    for (int part = 0; part < PARTS; part++) {
        struct record r = { .type = ROW_MARK, .cpu = cpu, .aux = part, .arg = (uintptr_t)end, .x = vcpus[cpu].task_id };
        memcpy(r.name, text + sizeof r.name * part, sizeof r.name);
        emit(r);
    }
}
