/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The part of QEMU's TCG plugin interface that this plugin uses, in all the forms that it has had (docs/devel/tcg-plugins.rst
 * in QEMU; Debian ships no qemu-plugin.h). Only api.c includes this: what the forms have in common is in api.h.
 *
 * MAYBE: which of these a QEMU has depends on its age, and one that a plugin needs and QEMU lacks would keep it from being
 * loaded. FORM_OF: a function that has had several kinds of arguments, each under a name of its own.
 */
#ifndef ASI_QEMU_API_H
#define ASI_QEMU_API_H

#include "api.h"

#define PLUGIN_EXPORT __attribute__((visibility("default")))
#define MAYBE __attribute__((weak))
#define FORM_OF(name) __asm__(#name)

typedef uint64_t qemu_plugin_id_t;

typedef struct {
    const char *target_name;
    struct { int min, cur; } version;
    bool system_emulation;
    union { struct { int smp_vcpus, max_vcpus; } system; };
} qemu_info_t;

enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_CB_R_REGS, QEMU_PLUGIN_CB_RW_REGS };
enum qemu_plugin_mem_rw { QEMU_PLUGIN_MEM_R = 1, QEMU_PLUGIN_MEM_W, QEMU_PLUGIN_MEM_RW };
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };

struct qemu_plugin_scoreboard; /* an element for each CPU */
typedef struct { struct qemu_plugin_scoreboard *score; size_t offset; } qemu_plugin_u64;

/* In every form. */
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, plugin_exec_cb, enum qemu_plugin_cb_flags, void *);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, plugin_exec_cb, enum qemu_plugin_cb_flags, void *);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, plugin_mem_cb, enum qemu_plugin_cb_flags,
                                      enum qemu_plugin_mem_rw, void *);

/* Up to version 6 a callback's first argument is the plugin's id; from version 7 on its last is a pointer of the plugin's own. */
void reset_6(qemu_plugin_id_t, void (*)(qemu_plugin_id_t)) FORM_OF(qemu_plugin_reset);
void reset_7(qemu_plugin_id_t, void (*)(void *), void *) FORM_OF(qemu_plugin_reset);
void register_cpu_start_6(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, unsigned int vcpu)) FORM_OF(qemu_plugin_register_vcpu_init_cb);
void register_cpu_start_7(qemu_plugin_id_t, void (*)(unsigned int vcpu, void *), void *) FORM_OF(qemu_plugin_register_vcpu_init_cb);
void register_translate_6(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *)) FORM_OF(qemu_plugin_register_vcpu_tb_trans_cb);
void register_translate_7(qemu_plugin_id_t, void (*)(struct qemu_plugin_tb *, void *), void *) FORM_OF(qemu_plugin_register_vcpu_tb_trans_cb);

/* Version 1 has the first, later ones have the others. */
void MAYBE qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *, uint64_t);
void MAYBE qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct qemu_plugin_tb *, enum qemu_plugin_op, qemu_plugin_u64, uint64_t);
struct qemu_plugin_scoreboard MAYBE *qemu_plugin_scoreboard_new(size_t element_size);
void MAYBE *qemu_plugin_scoreboard_find(struct qemu_plugin_scoreboard *, unsigned int vcpu);

/* Up to version 2 it gives a pointer, from version 3 it copies. */
const void *insn_data_2(const struct qemu_plugin_insn *) FORM_OF(qemu_plugin_insn_data);
size_t insn_data_3(const struct qemu_plugin_insn *, void *to, size_t size) FORM_OF(qemu_plugin_insn_data);

/* Not used: QEMU has it since version 6. */
void MAYBE qemu_plugin_set_pc(uint64_t);

#endif
