/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The smallest VMM that is worth recording. Its guest, in real mode, writes a port, which this program
 * handles, each time after a write to memory; and now and then asks CPUID, which the kernel handles.
 *
 * Usage: kvm_guest [ROUNDS]
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define GUEST_MEMORY (1 << 20)
#define CODE 0x1000
#define DATA_SEGMENT 0x2000

/*
 * again: mov cx, 32
 * inner: mov [di], al; add di, 0x1000; out 0x10, al; loop inner
 *        xor eax, eax; cpuid; dec si; jnz again; hlt
 */
static const uint8_t code[] = {
    0xb9, 0x20, 0x00,
    0x88, 0x05, 0x81, 0xc7, 0x00, 0x10, 0xe6, 0x10, 0xe2, 0xf6,
    0x66, 0x31, 0xc0, 0x0f, 0xa2, 0x4e, 0x75, 0xeb, 0xf4,
};

static int check(int result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

static void set_segment(struct kvm_segment *segment, uint64_t base)
{
    segment->base = base;
    segment->selector = base >> 4;
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 64;
    int kvm = check(open("/dev/kvm", O_RDWR), "/dev/kvm");
    int vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    uint8_t *memory = mmap(NULL, GUEST_MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        check(-1, "mmap");
    memcpy(memory + CODE, code, sizeof code);
    struct kvm_userspace_memory_region region = {
        .memory_size = GUEST_MEMORY, .userspace_addr = (uintptr_t)memory,
    };
    check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");

    int vcpu = check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    int size = check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
    struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED)
        check(-1, "mmap of the vCPU");
    struct kvm_sregs sregs;
    check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    set_segment(&sregs.cs, 0);
    set_segment(&sregs.ds, DATA_SEGMENT);
    set_segment(&sregs.ss, 0);
    check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    struct kvm_regs regs = { .rip = CODE, .rsp = CODE, .rsi = rounds, .rflags = 2 };
    check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");

    int ports = 0;
    for (;;) {
        check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
        if (run->exit_reason == KVM_EXIT_IO)
            ports++;
        else if (run->exit_reason == KVM_EXIT_HLT)
            break;
        else {
            fprintf(stderr, "unexpected exit reason %u\n", run->exit_reason);
            return 1;
        }
    }
    printf("%d port writes handled here, %d CPUID instructions by the kernel\n", ports, rounds);
    return 0;
}
