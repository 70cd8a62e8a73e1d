/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the files of the recorder share: the stream's record, the guest's layout as the host
 * described it, and one virtual CPU's recording state.
 *
 * QEMU runs all virtual CPUs on one thread (-accel tcg,thread=single), so nothing here is locked.
 */
#ifndef ASI_RECORDER_H
#define ASI_RECORDER_H

#include <stdbool.h>
#include <stdint.h>

#define MAX_CPUS 16
#define NONE UINT32_MAX
#define PAGE_SHIFT 12
#define PAGE_SIZE 4096ull
#define KERNEL_HALF 0xff00000000000000ull /* with five levels of page tables; with four, what lies below is not canonical */

/* Types below 64 are the trace's event kinds (asikit.trace.EventKind); the others fill its side tables. */
enum record_type {
    ENTRY_SYSCALL = 1, ENTRY_EXCEPTION, ENTRY_INTERRUPT, ENTRY_NMI, VM_EXIT,
    NESTED_EXCEPTION, NESTED_INTERRUPT, NESTED_NMI, NESTED_RETURN, RETURN_USER, VM_ENTRY,
    TOUCH_READ, TOUCH_WRITE, TOUCH_FETCH, TASK_SWITCH, MM_SWITCH, PAGE_ALLOC, PAGE_FREE, TLB_FLUSH,
    ROW_STACK = 64,    /* arg id, stack parent id, addr address */
    ROW_PLACE,         /* arg id, x page id, addr virtual address, stack area id */
    ROW_PAGE,          /* arg id, x frame, aux kind, stack allocation id, addr slab cache or file_system_type; a later row replaces an earlier one */
    ROW_ALLOCATION,    /* arg id, x frame, aux order | migratetype << 8, stack, addr gfp flags (all ones: unknown) */
    ROW_TASK,          /* arg id, x pid, tgid, aux 0, name comm; a ROW_TASK_MM follows */
    ROW_TASK_MM,       /* arg task id, x mm id */
    ROW_NAME,          /* arg, x the low and high half of a pointer; name 16 bytes of what it is called, aux which 16 */
    ROW_AREA,          /* an area of the vmalloc or the modules region: arg id, addr start, clock end; x and stack: low and high half of its maker's address */
    ROW_MARK,          /* of a phase, where it stands among the events: arg 1 if it ends, x task id; name 16 bytes of its name, aux which 16 */
    CONFIGURE,         /* the guest is ready: the host sends the layout */
    LOST,              /* arg which counter, clock count */
    COUNTS,            /* cpu, clock instructions, addr of them with an address in the kernel half */
    END,
};

enum page_kind { KIND_UNKNOWN, KIND_KERNEL, KIND_FREE, KIND_RESERVED, KIND_SLAB, KIND_ANON, KIND_PAGE_CACHE,
                 KIND_PAGE_TABLE, KIND_STACK, KIND_HUGETLB };

/* A TLB flush: of addresses of the loaded mm or of the kernel, of everything or of a range page by page. */
enum { FLUSH_KERNEL = 1, FLUSH_RANGE = 2 };

/* What each type has in it stands beside the type. A name has no NUL at its end if it takes all 16 bytes. */
struct record {
    uint8_t type, cpu;
    uint16_t aux;
    uint32_t arg;
    union { uint32_t stack, tgid; };
    uint32_t x;
    union {
        struct { uint64_t clock, addr; };
        char name[16];
    };
};
_Static_assert(sizeof(struct record) == 32, "the host reads 32-byte records");

/* Where things are in this kernel, from its symbols, BTF and trace event formats. */
#define LAYOUT_FIELDS(F) \
    F(page_offset) F(vmemmap) F(kernel_map) F(phys_base) F(init_top_pgt) F(paging_levels) F(init_mm) \
    F(syscall_entry) F(compat_entry) F(sysenter_entry) F(orig_ax_offset) F(error_entry) F(paranoid_entry) \
    F(current_task) F(loaded_mm) \
    F(task_pid) F(task_tgid) F(task_comm) F(task_mm) F(mm_ctx_id) \
    F(page_size) F(page_flags) F(page_mapping) F(page_compound) F(page_slab_cache) F(page_type) \
    F(flag_slab) F(flag_reserved) F(flag_head) \
    F(type_slab_mask) F(type_slab_value) F(type_buddy_mask) F(type_buddy_value) \
    F(type_table_mask) F(type_table_value) F(type_hugetlb_mask) F(type_hugetlb_value) \
    F(second_hugetlb_offset) F(second_hugetlb_mask) F(second_hugetlb_value) \
    F(cache_name) F(mapping_host) F(inode_sb) F(sb_type) \
    F(vmap_roots) F(vmap_root_count) F(vmap_root_stride) F(vmap_rb_node) F(vmap_start) F(vmap_end) F(vmap_vm) F(vm_caller) \
    F(rb_left) F(rb_right) \
    F(task_hook) F(switch_hook) F(schedule_start) F(schedule_end) F(mm_hook_start) F(mm_hook_end) \
    F(alloc_start) F(alloc_end) F(alloc_iter_start) F(alloc_iter_end) F(alloc_pfn) F(alloc_order) \
    F(alloc_gfp) F(alloc_gfp_bytes) F(alloc_migratetype) \
    F(free_start) F(free_end) F(free_iter_start) F(free_iter_end) F(free_pfn) F(free_order) \
    F(bulk_start) F(bulk_end) F(preempt_start) F(preempt_end)

/* Functions that flush this CPU's TLB, and whose addresses they flush. */
#define MAX_FLUSHERS 16
struct flusher { uint64_t start, end; bool kernel; };

struct layout {
#define F(name) uint64_t name;
    LAYOUT_FIELDS(F)
#undef F
    uint64_t gate[256];                  /* interrupt descriptor table: handler addresses, 0 = none */
    uint64_t per_cpu[MAX_CPUS];          /* __per_cpu_offset[] */
    uint64_t irq_stack[MAX_CPUS];        /* top of the CPU's interrupt stack */
    struct flusher flusher[MAX_FLUSHERS];
    int n_flushers;
};
extern struct layout layout;

enum mode { MODE_USER, MODE_KERNEL, MODE_GUEST, MODE_ENDED };

struct seen { uint64_t page; uint32_t epoch, kinds; };

struct vcpu {
    enum mode mode;
    uint32_t epoch;          /* a new one forgets all touches */
    uint32_t n_seen, seen_mask;
    struct seen *seen;
    uint64_t user_clock, kernel_clock; /* instructions outside of the kernel half, and in it */
    uint64_t entered;        /* the user part of the clock when the kernel was last entered */
    struct segment *segment; /* shadow stack of the page that was last called from */
    uint64_t under;          /* the stack page that the interrupt stack was entered from */
    bool muted;              /* inside a trace event handler that only this recording has enabled */
    uint32_t mute_stack;     /* one bit for each interrupted handler */
    bool has_handled;        /* it has been in such a handler since the recording began */
    uint32_t fetched;        /* the text page of the last block, if the next one there needs no look; 0 in user mode */
    bool in_block;           /* the CPU executes code, as against delivering an interrupt */
    bool iret, nmi;
    struct record *wants_number; /* the ENTRY_SYSCALL whose number is not known yet */
    uint64_t vmload, vmcb;   /* physical addresses: of the last VMLOAD, of the running guest's VMCB */
    uint64_t loaded_mm_id;
    bool mm_switch_pending;  /* in a context switch: written after it, as ASI exits before it changes the mm */
    uint64_t switched_mm;
    uint32_t mm_switch_stack;
    bool switching;          /* between the outgoing task's last and the incoming task's first instruction */
    uint32_t switched_from;  /* the outgoing task's stack */
    bool flushed;            /* the TLB flush in progress has been written */
    uint64_t task;           /* task_struct of the running task, as of the last switch */
    uint32_t task_id;
    struct stores { uint64_t addr[24]; uint8_t n; } stores[4]; /* of the trace event handlers, one interrupting another */
};
extern struct vcpu *vcpus; /* of MAX_CPUS */
static inline uint64_t clock_of(const struct vcpu *v) { return v->user_clock + v->kernel_clock; }
extern bool counts_inline; /* QEMU counts the instructions itself */
extern int n_cpus;

/* recorder.c */
int recorder_install(int cpus, int argc, char **argv);

/* stream.c */
enum lost { LOST_UNKNOWN_ENTRY, LOST_ALLOCATION, LOST_RETURN, LOST_KINDS };
struct pipes { int stream, layout, in, out, err; }; /* to asi and from it; the last three are the workload's streams */
void stream_open(const char *directory, struct pipes);
void stream_read_layout(void);
void stream_flush(void);
struct record *emit(struct record r);
void stream_hold(void);                      /* keep the records in reach until the matching release */
void stream_release(void);
void count_lost(enum lost what);
void stream_end(int n_cpus);
struct handed_over { char name[32]; uint64_t length; uint8_t content[4056]; }; /* a page of the guest's init */
void exchange(struct handed_over *);
static inline struct record *emit_event(enum record_type type, unsigned cpu, uint32_t arg, uint32_t stack, uint64_t addr)
{
    return emit((struct record){ .type = type, .cpu = cpu, .arg = arg, .stack = stack,
                                 .clock = clock_of(&vcpus[cpu]), .addr = addr });
}

/* guest.c: reading the guest's memory */
void guest_map(const char *path);
void guest_prepare(void);
uint8_t *guest_physical(uint64_t address);
uint8_t *guest_virtual(uint64_t address);     /* kernel addresses; NULL if not memory */
uint64_t guest_frames(void);
uint8_t *struct_page(uint64_t frame);
static inline uint64_t read64(const uint8_t *at) { return *(const uint64_t *)at; }
static inline uint32_t read32(const uint8_t *at) { return *(const uint32_t *)at; }
uint64_t read_pointer(uint64_t address);      /* 0 if it cannot be read */

/* pages.c: what each page is */
void pages_prepare(void);
uint32_t place_of(unsigned cpu, uint64_t vaddr, uint64_t frame);
uint32_t page_allocated(uint64_t frame, unsigned order, uint64_t gfp, unsigned migratetype, uint32_t stack);
uint32_t page_freed(uint64_t frame, unsigned order);
bool page_has_allocation(uint64_t frame);
void pages_settle(unsigned cpu); /* look again at pages that it touched of late that were nothing in particular then */
void pages_resolve_all(void);

/* vmalloc.c: which area an address of the vmalloc or the modules region lies in */
void areas_prepare(void);
uint32_t area_of(uint64_t vaddr);             /* id of its row, 0 if none */

/* shadow.c: kernel stacks, from the stores of call instructions */
void shadow_prepare(void);
void shadow_call(struct vcpu *, unsigned cpu, uint64_t at, uint64_t return_address);
void shadow_return(struct vcpu *, unsigned cpu, uint64_t at);
bool shadow_has(uint64_t vaddr);
uint64_t shadow_slot(const struct vcpu *, unsigned callers); /* where the return address lies of a call in progress; 0 for none */
uint32_t stack_now(struct vcpu *, unsigned cpu);             /* id of the row for the calls in progress */
uint32_t stack_leaf(uint32_t parent, uint64_t address);      /* id of the row below parent */
uint32_t stack_parent(uint32_t id);
uint64_t stack_address(uint32_t id);
bool stack_in(struct vcpu *, unsigned cpu, uint64_t ip, unsigned depth, bool (*is)(uint64_t address, void *), void *);

/* table.c: a map from a pair of words to a dense id */
struct table { struct entry { uint64_t a, b; uint32_t id; } *slot; uint32_t mask, n; };
void table_prepare(struct table *, uint32_t slots);
uint32_t *table_find(struct table *, uint64_t a, uint64_t b, bool *fresh); /* fresh: id is for the caller to set */
uint32_t *table_get(struct table *, uint64_t a, uint64_t b);               /* NULL if it is not there */

#endif
