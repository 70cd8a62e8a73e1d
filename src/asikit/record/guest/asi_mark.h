/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Phases of a workload, for `asi record`: what happens between asi_begin("steady") and asi_end("steady") is the phase
 * "steady" of the recording (docs/mark.md).
 *
 * A mark is one instruction: MOVB disp32(%rax), %al with a displacement that nobody else uses, which loads the first byte
 * of the name. Unrecorded it is that load and nothing else. One instruction cannot be cut in two, wherever it lies.
 *
 * A name has at most 31 bytes; what is longer is cut off. On other processors than x86 nothing is done.
 */
#ifndef ASI_MARK_H
#define ASI_MARK_H

#define ASI_MARK_BYTES 32 /* a name's, with its end; aligned, so that a name lies on one page */
#define ASI_MARK_BEGIN 0x41534904
#define ASI_MARK_END   0x41534905

#if defined(__x86_64__) || defined(__i386__)
#define ASI_MARK_TEXT_(x) #x
#define ASI_MARK_TEXT(x) ASI_MARK_TEXT_(x)
#define ASI_MARK_LOAD(mark, at) \
    __asm__ volatile(".byte 0x8a, 0x80\n\t.long " ASI_MARK_TEXT(mark) : "+a"(at) : : "memory")

static inline void asi_mark_(const char *name, int end)
{
    char text[ASI_MARK_BYTES] __attribute__((aligned(ASI_MARK_BYTES)));
    unsigned long at;
    int i;
    for (i = 0; i < ASI_MARK_BYTES - 1 && name[i]; i++)
        text[i] = name[i];
    for (; i < ASI_MARK_BYTES; i++)
        text[i] = 0;
    if (end) {
        at = (unsigned long)text - ASI_MARK_END;
        ASI_MARK_LOAD(ASI_MARK_END, at);
    } else {
        at = (unsigned long)text - ASI_MARK_BEGIN;
        ASI_MARK_LOAD(ASI_MARK_BEGIN, at);
    }
}
#else
static inline void asi_mark_(const char *name, int end)
{
    (void)name;
    (void)end;
}
#endif

static inline void asi_begin(const char *name)
{
    asi_mark_(name, 0);
}

static inline void asi_end(const char *name)
{
    asi_mark_(name, 1);
}

#endif
