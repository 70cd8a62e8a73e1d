/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An open-addressing map from a pair of words to an id, for interning stacks, places and names. */
#include <stdlib.h>

#include "recorder.h"

void table_prepare(struct table *t, uint32_t slots)
{
    free(t->slot);
    t->slot = calloc(slots, sizeof *t->slot);
    t->mask = slots - 1;
    t->n = 0;
}

static uint32_t hash(uint64_t a, uint64_t b)
{
    uint64_t h = (a ^ (b << 32 | b >> 32)) * 0x9e3779b97f4a7c15ull;
    return (h ^ h >> 29) * 0xbf58476d1ce4e5b9ull >> 32;
}

/* An all-zero key marks a free slot; the pairs interned here always have a nonzero word. */
static struct entry *probe(struct table *t, uint64_t a, uint64_t b)
{
    uint32_t i = hash(a, b) & t->mask;
    while ((t->slot[i].a | t->slot[i].b) && (t->slot[i].a != a || t->slot[i].b != b))
        i = (i + 1) & t->mask;
    return &t->slot[i];
}

static void grow(struct table *t)
{
    struct table bigger = { 0 };
    table_prepare(&bigger, (t->mask + 1) * 2);
    for (uint32_t i = 0; i <= t->mask; i++)
        if (t->slot[i].a | t->slot[i].b)
            *probe(&bigger, t->slot[i].a, t->slot[i].b) = t->slot[i];
    bigger.n = t->n;
    free(t->slot);
    *t = bigger;
}

uint32_t *table_find(struct table *t, uint64_t a, uint64_t b, bool *fresh)
{
    struct entry *e = probe(t, a, b);
    *fresh = !(e->a | e->b);
    if (*fresh) {
        if (t->n * 4 > t->mask * 3) {
            grow(t);
            e = probe(t, a, b);
        }
        e->a = a;
        e->b = b;
        t->n++;
    }
    return &e->id;
}

uint32_t *table_get(struct table *t, uint64_t a, uint64_t b)
{
    struct entry *e = probe(t, a, b);
    return e->a | e->b ? &e->id : NULL;
}
