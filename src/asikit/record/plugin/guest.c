/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The guest's memory is a shared file (-object memory-backend-file,share=on), so that everything the
 * kernel knows can be read at the moment it matters, without registers and without the guest's help.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "recorder.h"

static uint8_t *memory;
static uint64_t memory_size;
static uint8_t **page_structs; /* by 2 MiB of vmemmap */

void guest_map(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDWR);
    if (fd < 0 || fstat(fd, &st) < 0) {
        perror(path);
        exit(1);
    }
    memory_size = st.st_size;
    memory = mmap(NULL, memory_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        perror(path);
        exit(1);
    }
    close(fd);
}

uint64_t guest_frames(void)
{
    return memory_size >> PAGE_SHIFT;
}

uint8_t *guest_physical(uint64_t address)
{
    return address < memory_size ? memory + address : NULL;
}

/* A walk of the kernel's own page tables (SDM volume 3, 4.5). */
static uint8_t *walk(uint64_t vaddr)
{
    uint64_t table = layout.init_top_pgt - layout.kernel_map + layout.phys_base;
    for (int shift = 12 + 9 * (layout.paging_levels - 1); shift >= 12; shift -= 9) {
        uint8_t *at = guest_physical(table + (vaddr >> shift & 511) * 8);
        if (!at)
            return NULL;
        uint64_t entry = read64(at);
        if (!(entry & 1))
            return NULL;
        uint64_t base = entry & 0x000ffffffffff000ull;
        if (shift == 12 || (shift < 39 && entry & 0x80)) {
            uint64_t offset = vaddr & ((1ull << shift) - 1);
            return guest_physical((base & ~((1ull << shift) - 1)) + offset);
        }
        table = base;
    }
    return NULL;
}

uint8_t *guest_virtual(uint64_t address)
{
    if (address - layout.page_offset < memory_size)
        return memory + (address - layout.page_offset);
    return address >= KERNEL_HALF ? walk(address) : NULL;
}

uint64_t read_pointer(uint64_t address)
{
    uint8_t *at = address & 7 ? NULL : guest_virtual(address);
    return at ? read64(at) : 0;
}

/* vmemmap is mapped with 2 MiB pages; remember where each of them lies. */
void guest_prepare(void)
{
    areas_prepare();
    uint64_t blocks = (guest_frames() * layout.page_size >> 21) + 1;
    free(page_structs);
    page_structs = calloc(blocks, sizeof *page_structs);
    for (uint64_t i = 0; i < blocks; i++)
        page_structs[i] = walk(layout.vmemmap + (i << 21));
}

uint8_t *struct_page(uint64_t frame)
{
    uint64_t offset = frame * layout.page_size;
    uint8_t *block = frame < guest_frames() ? page_structs[offset >> 21] : NULL;
    return block ? block + (offset & ((1 << 21) - 1)) : NULL;
}
