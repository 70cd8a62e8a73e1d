/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What QEMU calls while the guest runs, and what those callbacks are given. */
#ifndef ASI_CALLBACKS_H
#define ASI_CALLBACKS_H

#include "api.h"
#include "recorder.h"

/* Kept for the whole run, as the code that QEMU generates points to them. */
struct text_page { uint64_t page; uint32_t epoch[MAX_CPUS]; };
struct block { uint64_t address; struct text_page *page; uint32_t instructions; };
struct call_site { uint64_t address, return_address; bool saves_registers; };
struct flush_site { uint64_t address; bool range; }; /* an instruction that flushes the TLB: one page of a range, or more */
struct gate { uint64_t address; uint32_t vector; struct block block; };

/* touches.c */
void seen_grow(struct vcpu *);
void forget_touches(struct vcpu *);
void forget_frame(uint64_t frame); /* the next touch through the direct map is a first one again */
void on_access(unsigned cpu, qemu_plugin_meminfo_t, uint64_t vaddr, void *ip);
void on_block(unsigned cpu, void *block);
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

/* kernel.c */
void check_mm(struct vcpu *, unsigned cpu, bool alone);
uint32_t current_task_row(unsigned cpu);
void on_mm_switch(unsigned cpu, void *unused);
void on_task_switch(unsigned cpu, void *unused);
void on_switch_begin(unsigned cpu, void *unused);
void on_flusher_begin(unsigned cpu, void *unused);
void on_flush(unsigned cpu, void *flush_site);
void on_event_begin(unsigned cpu, void *unused);
void on_handler_begin(unsigned cpu, void *unused);
void on_handler_store(unsigned cpu, qemu_plugin_meminfo_t, uint64_t vaddr, void *unused);
void on_alloc_end(unsigned cpu, void *unused);
void on_free_end(unsigned cpu, void *unused);

#endif
