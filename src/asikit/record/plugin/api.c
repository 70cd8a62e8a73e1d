/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * QEMU's TCG plugin interface, whichever version of it this QEMU has. A plugin says which version it is for before QEMU
 * tells anything, and no number suits all: version 7 is the only one that a QEMU which has it takes. So the functions that
 * this QEMU has decide, before it looks.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "qemu_api.h"
#include "recorder.h"

enum version {
    INLINE_BY_ADDRESS = 1, /* counters anywhere in memory */
    INLINE_PER_CPU = 2,    /* counters on scoreboards; QEMU goes on taking it up to version 6 */
    CODE_IS_COPIED = 3,
    POINTER_OF_OUR_OWN = 7,
};
PLUGIN_EXPORT int qemu_plugin_version;
static int qemu_has; /* the newest version that this QEMU knows */

static qemu_plugin_id_t plugin;
static translator translate;
static struct qemu_plugin_scoreboard *scoreboard;

/* With QEMU's version 6 alone this is wrong, and QEMU says so: it is the same as 7 in what it has. */
__attribute__((constructor)) static void choose_version(void)
{
    if (qemu_plugin_register_vcpu_tb_exec_inline)
        qemu_plugin_version = INLINE_BY_ADDRESS;
    else
        qemu_plugin_version = qemu_plugin_set_pc ? POINTER_OF_OUR_OWN : INLINE_PER_CPU;
}

/* ---- which CPU runs ---- */

/*
 * From QEMU 10.0 on, the code of a block names the CPU that it was translated for, unless each CPU has a thread of its own
 * (accel/tcg/plugin-gen.c, gen_cpu_index()); but all CPUs run the blocks of any. What is true is QEMU's own variable.
 */
static void *cpus[MAX_CPUS]; /* what QEMU calls each CPU */
static void *no_cpu;
struct running api_running = { .at = &no_cpu };
static bool relays;          /* what QEMU tells of the CPU is not to be trusted */

static void *current_cpu(void)
{
    void **at = dlsym(RTLD_DEFAULT, "current_cpu"); /* this thread's */
    return at ? *at : NULL;
}

static void on_cpu_start(unsigned cpu)
{
    if (cpu < MAX_CPUS)
        cpus[cpu] = current_cpu();
}

static void on_cpu_start_6(qemu_plugin_id_t id, unsigned cpu)
{
    on_cpu_start(cpu);
}

static void on_cpu_start_7(unsigned cpu, void *unused)
{
    on_cpu_start(cpu);
}

unsigned api_find_cpu(void)
{
    if (api_running.at == &no_cpu)
        api_running.at = dlsym(RTLD_DEFAULT, "current_cpu"); /* all CPUs run on one thread */
    for (unsigned cpu = 0; cpu < MAX_CPUS; cpu++)
        if (cpus[cpu] == *api_running.at) {
            api_running.last = *api_running.at;
            return api_running.cpu = cpu;
        }
    fprintf(stderr, "asi recorder: QEMU runs a CPU that it has not announced; record with one CPU\n");
    _exit(1);
}

struct relay { plugin_exec_cb exec; plugin_mem_cb memory; void *udata; };

static void relay_exec(unsigned told, void *relay)
{
    struct relay *r = relay;
    r->exec(api_cpu(told), r->udata);
}

static void relay_memory(unsigned told, qemu_plugin_meminfo_t info, uint64_t vaddr, void *relay)
{
    struct relay *r = relay;
    r->memory(api_cpu(told), info, vaddr, r->udata);
}

static void *keep(struct relay r)
{
    return memcpy(malloc(sizeof r), &r, sizeof r);
}

/* ---- registering callbacks ---- */

void api_on_start_direct(struct qemu_plugin_tb *tb, plugin_exec_cb cb, void *udata)
{
    qemu_plugin_register_vcpu_tb_exec_cb(tb, cb, QEMU_PLUGIN_CB_NO_REGS, udata);
}

void api_on_start(struct qemu_plugin_tb *tb, plugin_exec_cb cb, void *udata)
{
    if (relays) {
        udata = keep((struct relay){ .exec = cb, .udata = udata });
        cb = relay_exec;
    }
    api_on_start_direct(tb, cb, udata);
}

void api_on_insn(struct qemu_plugin_insn *insn, plugin_exec_cb cb, void *udata)
{
    if (relays) {
        udata = keep((struct relay){ .exec = cb, .udata = udata });
        cb = relay_exec;
    }
    qemu_plugin_register_vcpu_insn_exec_cb(insn, cb, QEMU_PLUGIN_CB_NO_REGS, udata);
}

/*
 * Always for reads and writes: QEMU 7.2 mixes up the two when asked for one of them (accel/tcg/plugin-gen.c,
 * op_rw() adds one to what is a bit mask already).
 */
void api_on_memory_direct(struct qemu_plugin_insn *insn, plugin_mem_cb cb, void *udata)
{
    qemu_plugin_register_vcpu_mem_cb(insn, cb, QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW, udata);
}

void api_on_memory(struct qemu_plugin_insn *insn, plugin_mem_cb cb, void *udata)
{
    if (relays) {
        udata = keep((struct relay){ .memory = cb, .udata = udata });
        cb = relay_memory;
    }
    api_on_memory_direct(insn, cb, udata);
}

/* ---- counting ---- */

/* Where QEMU counts on nothing but scoreboards, the CPUs' states are the elements of one. */
struct vcpu *api_vcpus(void)
{
    if (!qemu_plugin_scoreboard_new)
        return calloc(MAX_CPUS, sizeof(struct vcpu));
    scoreboard = qemu_plugin_scoreboard_new(sizeof(struct vcpu));
    return qemu_plugin_scoreboard_find(scoreboard, 0);
}

static void count(struct qemu_plugin_tb *tb, size_t member, uint64_t instructions)
{
    if (qemu_plugin_register_vcpu_tb_exec_inline)
        qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, (char *)vcpus + member, instructions);
    else
        qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, QEMU_PLUGIN_INLINE_ADD_U64, (qemu_plugin_u64){ scoreboard, member },
                                                          instructions);
}

void api_count(struct qemu_plugin_tb *tb, size_t instructions, bool kernel)
{
    count(tb, kernel ? offsetof(struct vcpu, kernel_clock) : offsetof(struct vcpu, user_clock), instructions);
}

/* ---- translation ---- */

static void translate_6(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    translate(tb);
}

static void translate_7(struct qemu_plugin_tb *tb, void *unused)
{
    translate(tb);
}

void api_translate(translator how)
{
    translate = how;
    if (qemu_has < POINTER_OF_OUR_OWN)
        register_translate_6(plugin, translate_6);
    else
        register_translate_7(plugin, translate_7, NULL);
}

static void started_again_6(qemu_plugin_id_t id)
{
    api_translate(translate);
}

static void started_again_7(void *unused)
{
    api_translate(translate);
}

void api_start_again(translator how)
{
    translate = how;
    if (qemu_has < POINTER_OF_OUR_OWN)
        reset_6(plugin, started_again_6);
    else
        reset_7(plugin, started_again_7, NULL);
}

/* What has scoreboards takes a CPU's memory callbacks back whenever it leaves the code (accel/tcg/cpu-exec.c, cpu_tb_exec()). */
bool api_can_start_again(void)
{
    return qemu_plugin_scoreboard_new;
}

size_t api_code(const struct qemu_plugin_insn *insn, uint8_t code[MOST_CODE_BYTES])
{
    size_t size = qemu_plugin_insn_size(insn);
    memset(code, 0, MOST_CODE_BYTES);
    if (size > MOST_CODE_BYTES)
        size = MOST_CODE_BYTES;
    if (qemu_has >= CODE_IS_COPIED)
        return insn_data_3(insn, code, size);
    memcpy(code, insn_data_2(insn), size);
    return size;
}

/* ---- installing ---- */

bool api_option(int argc, char **argv, const char *option)
{
    for (int i = 0; i < argc; i++)
        if (!strcmp(argv[i], option))
            return true;
    return false;
}

static bool can_tell_cpu(void)
{
    if (!dlsym(RTLD_DEFAULT, "current_cpu"))
        return false;
    if (qemu_has < POINTER_OF_OUR_OWN)
        register_cpu_start_6(plugin, on_cpu_start_6);
    else
        register_cpu_start_7(plugin, on_cpu_start_7, NULL);
    api_running.last = &api_running; /* no CPU: it is looked for */
    return true;
}

PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    plugin = id;
    qemu_has = info->version.cur;
    if (!info->system_emulation || info->system.max_vcpus > MAX_CPUS) {
        fprintf(stderr, "asi recorder: needs system emulation and at most %d CPUs\n", MAX_CPUS);
        return 1;
    }
    bool several = info->system.max_vcpus > 1 || api_option(argc, argv, "cpu=running");
    relays = several && !qemu_plugin_register_vcpu_tb_exec_inline;
    if (relays && !can_tell_cpu()) {
        fprintf(stderr, "asi recorder: this QEMU does not tell plugins which of several CPUs runs; record with one CPU\n");
        return 1;
    }
    return recorder_install(info->system.max_vcpus, argc, argv);
}
