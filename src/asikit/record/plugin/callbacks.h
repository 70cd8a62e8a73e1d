/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What QEMU calls while the guest runs, and what those callbacks are given. */
#ifndef ASI_CALLBACKS_H
#define ASI_CALLBACKS_H

#include "api.h"
#include "recorder.h"

struct text_page { uint64_t page; uint32_t epoch[MAX_CPUS]; };

/* Kept for the whole run, as the code that QEMU generates points to them. */
struct call_site { uint64_t address, return_address; bool saves_registers; };
struct flush_site { uint64_t address; bool range; }; /* an instruction that flushes the TLB: one page of a range, or more */
struct gate { uint64_t address; uint32_t vector; uint64_t block; };

/* A block in one word, as looking it up in memory would cost more than all else: its page's place in the list, where in it, and
   its instructions, 0 if QEMU counts them itself. */
extern struct text_page *text_pages; /* from 1 on */
#define BLOCK(page, address, counted) ((uint64_t)(page) << 28 | ((address) & (PAGE_SIZE - 1)) << 16 | (counted))
static inline uint32_t block_page(uint64_t block) { return block >> 28; }
static inline uint32_t block_counted(uint64_t block) { return block & 0xffff; }
static inline uint64_t block_address(uint64_t block)
{
    return text_pages[block_page(block)].page << PAGE_SHIFT | (block >> 16 & (PAGE_SIZE - 1));
}

/* touches.c; some are registered with api_on_..._direct(), as they are called often */
void seen_grow(struct vcpu *);
void forget_touches(struct vcpu *);
void forget_frame(uint64_t frame); /* the next touch through the direct map is a first one again */
void on_access(unsigned cpu, qemu_plugin_meminfo_t, uint64_t vaddr, void *ip);
void on_access_by_running(unsigned told, qemu_plugin_meminfo_t, uint64_t vaddr, void *ip);
void on_block(unsigned cpu, void *block);
void on_block_of_running(unsigned told, void *block);
void on_fetch(unsigned cpu, void *address);
void on_user_block(unsigned cpu, void *instructions);
void on_gate(unsigned cpu, void *gate);
void on_syscall(unsigned cpu, void *gate);
void on_sysret(unsigned cpu, void *ip);
void on_iret(unsigned cpu, void *unused);
void on_iret_load(unsigned cpu, qemu_plugin_meminfo_t, uint64_t vaddr, void *ip);
void on_vmload(unsigned cpu, qemu_plugin_meminfo_t, uint64_t physical, void *ip);
void on_vmrun(unsigned cpu, void *ip);
void on_vmexit(unsigned cpu, void *gate);
void on_call(unsigned cpu, qemu_plugin_meminfo_t, uint64_t vaddr, void *call_site);
void on_return(unsigned cpu, qemu_plugin_meminfo_t, uint64_t vaddr, void *ip);

/* phases.c */
void on_phase_mark(unsigned cpu, qemu_plugin_meminfo_t, uint64_t vaddr, void *end);

/* kernel.c */
void check_mm(struct vcpu *, unsigned cpu, bool alone);
uint32_t current_task_row(unsigned cpu);
void on_mm_switch(unsigned cpu, void *unused);
void on_task_switch(unsigned cpu, void *unused);
void on_switch_begin(unsigned cpu, void *unused);
void on_flusher_begin(unsigned cpu, void *unused);
void on_flush(unsigned cpu, void *flush_site);
void on_preempt_begin(unsigned cpu, void *unused);
void on_preempt_end(unsigned cpu, void *unused);
void on_event_begin(unsigned cpu, void *unused);
void on_handler_begin(unsigned cpu, void *unused);
void on_handler_store(unsigned cpu, qemu_plugin_meminfo_t, uint64_t vaddr, void *unused);
void on_alloc_end(unsigned cpu, void *unused);
void on_free_end(unsigned cpu, void *unused);
void on_bulk_store(unsigned cpu, qemu_plugin_meminfo_t, uint64_t vaddr, void *ip);

#endif
