/* SPDX-License-Identifier: Apache-2.0
 *
 * What a processor and its kernel cost, as far as user mode can see without root. Prints a line for each sample,
 * "NAME NANOSECONDS", and "missing NAME REASON" for what cannot be measured. Each sample is the mean of many repetitions
 * in a tight loop; calibrate.py takes medians of the samples.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* linux/prctl.h and linux/membarrier.h, which the C library's headers may lag behind. */
#define SPEC_INDIRECT_BRANCH 1
#define SPEC_L1D_FLUSH 2
#define SPEC_PRCTL (1UL << 0)
#define SPEC_ENABLE (1UL << 1)
#define SPEC_DISABLE (1UL << 2)
#define GET_SPECULATION_CTRL 52
#define SET_SPECULATION_CTRL 53
#define MEMBARRIER_PRIVATE_EXPEDITED (1 << 3)
#define MEMBARRIER_REGISTER_PRIVATE_EXPEDITED (1 << 4)

#define PAGE 4096
#define PAGES 256
#define PAGEBLOCK (2UL << 20)

static int samples = 25;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

/* Of this thread alone: what others do on the CPU meanwhile does not count. */
static double own(void)
{
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void sample(const char *name, double nanoseconds)
{
	printf("%s %.3f\n", name, nanoseconds);
}

static void missing(const char *name, const char *reason)
{
	printf("missing %s %s\n", name, reason);
	fflush(stdout);
}

/* Three cycles each on every Intel and AMD core since 2008, one after the other: the clock's frequency. */
#define IMUL "imul %0, %0\n\t"
#define IMUL10 IMUL IMUL IMUL IMUL IMUL IMUL IMUL IMUL IMUL IMUL

static void multiplications(void)
{
	const int loops = 20000;

	for (int i = 0; i < samples; i++) {
		uint64_t x = 3;
		double start = own();
		for (int j = 0; j < loops; j++)
			__asm__ volatile(IMUL10 : "+r"(x));
		sample("imul", (own() - start) / (10.0 * loops));
	}
}

/* Instructions that flush, and may be executed by anybody. The empty loop's time is taken off each sample. */
static double loop_time(int what, int loops)
{
	uint16_t selector;
	double start;

	__asm__ volatile("mov %%ds, %0" : "=r"(selector));
	if (selector == 0) /* the null selector cannot be verified for writing: take the stack's */
		__asm__ volatile("mov %%ss, %0" : "=r"(selector));
	start = own();
	for (int j = 0; j < loops; j++) {
		switch (what) {
		case 1:
			__asm__ volatile("verw %0" : : "m"(selector) : "cc");
			break;
		case 2:
			__asm__ volatile("lfence" : : : "memory");
			break;
		case 3:
			/* As FILL_RETURN_BUFFER in the kernel: 32 calls that never return. */
			__asm__ volatile("sub $128, %%rsp\n\t"
					 ".rept 32\n\t"
					 "call 772f\n\t"
					 "int3\n\t"
					 "772:\n\t"
					 ".endr\n\t"
					 "add $(128 + 32 * 8), %%rsp\n\t"
					 "lfence" : : : "memory");
			break;
		default:
			__asm__ volatile("" : : : "memory");
		}
	}
	return (own() - start) / loops;
}

static void instructions(void)
{
	const char *const names[] = {"", "verw", "lfence", "rsb_fill"};

	for (int i = 0; i < samples; i++)
		for (int what = 1; what <= 3; what++)
			sample(names[what], loop_time(what, 5000) - loop_time(0, 5000));
}

static void system_calls(void)
{
	const int loops = 20000;

	for (int i = 0; i < samples; i++) {
		double start = own();
		for (int j = 0; j < loops; j++)
			syscall(SYS_getppid);
		sample("system_call", (own() - start) / loops);
	}
}

static char *fresh_pages(void)
{
	char *pages = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (pages == MAP_FAILED)
		exit(3);
	madvise(pages, PAGES * PAGE, MADV_NOHUGEPAGE);
	return pages;
}

static double write_each(char *pages)
{
	double start = own();

	for (int j = 0; j < PAGES; j++)
		((volatile char *)pages)[j * PAGE] = 1;
	return (own() - start) / PAGES;
}

static void faults(void)
{
	for (int i = 0; i < samples; i++) {
		char *pages = fresh_pages();

		sample("minor_fault", write_each(pages));
		munmap(pages, PAGES * PAGE);
	}
}

/* The child lives until the parent has copied its pages: only then is a write a copy. */
static void forks(void)
{
	char *pages = fresh_pages();

	write_each(pages);
	for (int i = 0; i < samples; i++) {
		int hold[2];
		char byte;
		double start = now();
		pid_t child = fork();

		if (child == 0)
			_exit(0);
		waitpid(child, NULL, 0);
		sample("fork", now() - start);
		if (child < 0 || pipe(hold))
			exit(3);
		fflush(stdout);
		child = fork();
		if (child == 0) {
			close(hold[1]);
			_exit(read(hold[0], &byte, 1) != 0);
		}
		sample("fork_page_copy", write_each(pages));
		close(hold[0]);
		close(hold[1]);
		waitpid(child, NULL, 0);
	}
	munmap(pages, PAGES * PAGE);
}

static void clears(void)
{
	const int blocks = 32; /* 64 MiB: more than most caches */
	char *memory = mmap(NULL, blocks * PAGEBLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED) {
		missing("clear_pageblock", "64 MiB of memory could not be had");
		return;
	}
	memset(memory, 1, blocks * PAGEBLOCK);
	for (int i = 0; i < samples; i++) {
		char *block = memory + (i % blocks) * PAGEBLOCK;
		uint64_t count = PAGEBLOCK;
		double start = own();

		__asm__ volatile("rep stosb" : "+D"(block), "+c"(count) : "a"(0) : "memory");
		sample("clear_pageblock", own() - start);
	}
	munmap(memory, blocks * PAGEBLOCK);
}

/* A partner on the same CPU that answers each byte; `control` is its speculation control, none if negative. */
static pid_t partner(int *to, int *from, int control, unsigned long value)
{
	int there[2], back[2];
	pid_t child;

	if (pipe(there) || pipe(back))
		exit(3);
	fflush(stdout);
	child = fork();
	if (child == 0) {
		char byte;

		close(there[1]);
		close(back[0]);
		if (control >= 0 && prctl(SET_SPECULATION_CTRL, control, value, 0, 0))
			_exit(errno);
		while (read(there[0], &byte, 1) == 1)
			if (write(back[1], &byte, 1) != 1)
				break;
		_exit(0);
	}
	close(there[0]);
	close(back[1]);
	*to = there[1];
	*from = back[0];
	return child;
}

/* One way, in ns; negative if the partner is dead. */
static double ping_pong(int to, int from, int rounds)
{
	char byte = 0;
	double start = now();

	for (int i = 0; i < rounds; i++)
		if (write(to, &byte, 1) != 1 || read(from, &byte, 1) != 1)
			return -1;
	return (now() - start) / (2.0 * rounds);
}

static int finish(pid_t child, int to, int from)
{
	int status;

	close(to);
	close(from);
	waitpid(child, &status, 0);
	return status;
}

static void switches(void)
{
	int to, from;
	pid_t child = partner(&to, &from, -1, 0);

	ping_pong(to, from, 1000);
	for (int i = 0; i < samples; i++)
		sample("context_switch", ping_pong(to, from, 1000));
	finish(child, to, from);
}

/* A switch to or from a process that asked for a flush, less one that did not: taken in turns, so that drift cancels. */
static void flushing_switches(const char *name, int control, unsigned long value, double per_switch)
{
	int state = prctl(GET_SPECULATION_CTRL, control, 0, 0, 0);
	int to[2], from[2], status, alive = 1;
	pid_t child[2];
	char reason[160];

	if (state < 0 || !(state & SPEC_PRCTL)) {
		const char *why = state < 0 ? strerror(errno)
			: state == 0 ? "the kernel says the processor is not affected"
			: control == SPEC_L1D_FLUSH ? "the kernel does not offer it (boot with l1d_flush=on)"
			: state & SPEC_ENABLE ? "the kernel's mitigation is off"
			: "the kernel has it on for all";
		snprintf(reason, sizeof reason, "prctl(PR_GET_SPECULATION_CTRL, %d): %s", control, why);
		missing(name, reason);
		return;
	}
	child[0] = partner(&to[0], &from[0], -1, 0);
	child[1] = partner(&to[1], &from[1], control, value);
	for (int i = 0; i < samples && alive; i++) {
		double plain = ping_pong(to[0], from[0], 500), flushed = ping_pong(to[1], from[1], 500);

		alive = flushed >= 0;
		if (alive)
			sample(name, (flushed - plain) / per_switch);
	}
	finish(child[0], to[0], from[0]);
	status = finish(child[1], to[1], from[1]);
	if (!alive) {
		if (WIFSIGNALED(status))
			snprintf(reason, sizeof reason, "the process was killed by signal %d (SMT is on)", WTERMSIG(status));
		else
			snprintf(reason, sizeof reason, "prctl(PR_SET_SPECULATION_CTRL, %d): %s", control,
				 strerror(WEXITSTATUS(status)));
		missing(name, reason);
	}
}

static volatile int spinning, stop;

static double thread_time(pthread_t thread)
{
	clockid_t clock;
	struct timespec t;

	if (pthread_getcpuclockid(thread, &clock) || clock_gettime(clock, &t))
		return 0;
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void *spin(void *set)
{
	sched_setaffinity(0, sizeof(cpu_set_t), set);
	spinning = 1;
	while (!stop)
		__builtin_ia32_pause();
	return NULL;
}

static double barriers(int loops)
{
	double start = now();

	for (int i = 0; i < loops; i++)
		syscall(SYS_membarrier, MEMBARRIER_PRIVATE_EXPEDITED, 0, 0);
	return (now() - start) / loops;
}

/* membarrier() interrupts the CPUs that run this process' threads, and waits; with one thread it does nothing. */
static void interrupts(const cpu_set_t *all, int here)
{
	cpu_set_t other;
	pthread_t thread;
	double alone;
	int cpu = -1, kept = 0;

	for (int i = 0; i < CPU_SETSIZE; i++)
		if (i != here && CPU_ISSET(i, all))
			cpu = i;
	if (cpu < 0) {
		missing("ipi", "there is one CPU only");
		return;
	}
	if (syscall(SYS_membarrier, MEMBARRIER_REGISTER_PRIVATE_EXPEDITED, 0, 0)) {
		missing("ipi", "membarrier() is not there");
		return;
	}
	alone = barriers(2000);
	CPU_ZERO(&other);
	CPU_SET(cpu, &other);
	if (pthread_create(&thread, NULL, spin, &other)) {
		missing("ipi", "a thread could not be made");
		return;
	}
	while (!spinning)
		sched_yield();
	/* A CPU that runs somebody else meanwhile is not interrupted: such a sample is none. */
	for (int i = 0; i < 20 * samples && kept < samples; i++) {
		double start = now(), ran = thread_time(thread), taken = barriers(200) - alone;

		if (thread_time(thread) - ran > 0.95 * (now() - start)) {
			sample("ipi", taken);
			kept++;
		}
	}
	stop = 1;
	pthread_join(thread, NULL);
	if (kept < samples)
		missing("ipi", "the other CPU was busy");
}

int main(int argc, char **argv)
{
	cpu_set_t all, one;
	int cpu;

	if (argc > 1)
		samples = atoi(argv[1]);
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	sched_getaffinity(0, sizeof all, &all);
	cpu = sched_getcpu();
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	sched_setaffinity(0, sizeof one, &one);
	multiplications();
	instructions();
	system_calls();
	faults();
	forks();
	clears();
	switches();
	/* Both the switch to the process and the one from it flush predictors; only the one from it flushes the L1D. */
	flushing_switches("ibpb", SPEC_INDIRECT_BRANCH, SPEC_DISABLE, 1.0);
	flushing_switches("l1d_flush", SPEC_L1D_FLUSH, SPEC_ENABLE, 0.5);
	interrupts(&all, cpu);
	return 0;
}
