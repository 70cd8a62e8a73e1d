/* SPDX-License-Identifier: GPL-2.0-or-later */
/* QEMU's TCG plugin interface as this plugin sees it: the same with every QEMU. */
#ifndef ASI_API_H
#define ASI_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint32_t qemu_plugin_meminfo_t;

struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_hwaddr;

typedef void (*plugin_exec_cb)(unsigned int vcpu, void *udata);
typedef void (*plugin_mem_cb)(unsigned int vcpu, qemu_plugin_meminfo_t, uint64_t vaddr, void *udata);
typedef void (*translator)(struct qemu_plugin_tb *);

#define MOST_CODE_BYTES 15 /* of an instruction */

/* api.c */
void api_translate(translator);         /* call it for each block that is translated from now on */
void api_start_again(translator);       /* forget all translations and callbacks; then as api_translate() */
bool api_can_start_again(void);         /* also if there are memory callbacks */
struct vcpu *api_vcpus(void);           /* an array of all CPUs, zero; QEMU has none before the first instruction */
void api_count(struct qemu_plugin_tb *, size_t instructions, bool kernel); /* one CPU only */
void api_on_start(struct qemu_plugin_tb *, plugin_exec_cb, void *udata);
void api_on_start_direct(struct qemu_plugin_tb *, plugin_exec_cb, void *udata); /* these two for what is called often: */
void api_on_memory_direct(struct qemu_plugin_insn *, plugin_mem_cb, void *udata); /* it asks api_cpu() itself */
void api_on_insn(struct qemu_plugin_insn *, plugin_exec_cb, void *udata);
void api_on_memory(struct qemu_plugin_insn *, plugin_mem_cb, void *udata);
bool api_option(int argc, char **argv, const char *option); /* whether it is given: for tests, to compare two ways */
size_t api_code(const struct qemu_plugin_insn *, uint8_t code[MOST_CODE_BYTES]); /* gives the number of bytes */

/* Where QEMU cannot be believed about the CPU that runs, its own variable says it. It seldom changes. */
extern struct running { void **at, *last; unsigned cpu; } api_running;
unsigned api_find_cpu(void);
static inline bool api_tells_cpu(void) { return !api_running.last; }
static inline bool api_same_cpu(void) { return *api_running.at == api_running.last; } /* api_running.cpu */
static inline unsigned api_cpu(unsigned told)
{
    return api_tells_cpu() ? told : api_same_cpu() ? api_running.cpu : api_find_cpu();
}

/* QEMU's own, which never changed */
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *);
unsigned int qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t);
bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t);
struct qemu_plugin_hwaddr *qemu_plugin_get_hwaddr(qemu_plugin_meminfo_t, uint64_t vaddr);
bool qemu_plugin_hwaddr_is_io(const struct qemu_plugin_hwaddr *);
uint64_t qemu_plugin_hwaddr_phys_addr(const struct qemu_plugin_hwaddr *);

#endif
