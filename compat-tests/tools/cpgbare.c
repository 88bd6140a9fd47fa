/*
 * cpgbare - what corosync itself can do, without any daemon: a member of a group of its own that
 *           sends messages and waits for their delivery to itself.
 *
 * Build (Debian: apt install gcc libcpg-dev):
 *     gcc -O2 -Wall -o cpgbare cpgbare.c -lcpg
 *
 *     cpgbare member                         joins and receives until it is killed
 *     cpgbare send MEMBERS BYTES OUT MS      joins, waits until the group has MEMBERS members, then
 *                                            for MS milliseconds keeps OUT messages of BYTES bytes
 *                                            under way
 * Output of send: "RATE messages/s, median M us, COUNT messages".
 */
#include <corosync/cpg.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static size_t members;
static uint32_t own_node;
static uint64_t sent_at[1 << 20];
static uint32_t taken[1 << 20]; /* microseconds each message took */
static size_t sent, delivered;

static uint64_t now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000ull + t.tv_nsec / 1000;
}

static void on_deliver(cpg_handle_t h, const struct cpg_name *g, uint32_t node, uint32_t pid,
		       void *msg, size_t len)
{
	if (node == own_node && pid == (uint32_t)getpid()) {
		taken[delivered] = now_us() - sent_at[delivered];
		delivered++;
	}
}

static void on_confchg(cpg_handle_t h, const struct cpg_name *g, const struct cpg_address *m,
		       size_t n, const struct cpg_address *left, size_t nleft,
		       const struct cpg_address *joined, size_t njoined)
{
	members = n;
}

static void fail(const char *what, int code)
{
	fprintf(stderr, "cpgbare: %s failed: %d\n", what, code);
	exit(1);
}

static int by_size(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	cpg_callbacks_t callbacks = { .cpg_deliver_fn = on_deliver, .cpg_confchg_fn = on_confchg };
	struct cpg_name group = { .length = 8, .value = "cpgbare" };
	cpg_handle_t handle;
	int code, fd;
	int sending = argc == 6 && !strcmp(argv[1], "send");

	if (!sending && !(argc == 2 && !strcmp(argv[1], "member"))) {
		fprintf(stderr, "usage: cpgbare member | send MEMBERS BYTES OUT MS\n");
		return 2;
	}
	if ((code = cpg_initialize(&handle, &callbacks)) != CS_OK)
		fail("cpg_initialize", code);
	if ((code = cpg_fd_get(handle, &fd)) != CS_OK)
		fail("cpg_fd_get", code);
	if ((code = cpg_local_get(handle, &own_node)) != CS_OK)
		fail("cpg_local_get", code);
	while ((code = cpg_join(handle, &group)) == CS_ERR_TRY_AGAIN)
		usleep(1000);
	if (code != CS_OK)
		fail("cpg_join", code);
	if (!sending) {
		code = cpg_dispatch(handle, CS_DISPATCH_BLOCKING);
		fail("cpg_dispatch", code);
	}

	size_t wanted = atoi(argv[2]), bytes = atoi(argv[3]), out = atoi(argv[4]);
	uint64_t start = 0, end = 0, limit = atoi(argv[5]) * 1000ull;
	char *message = calloc(1, bytes ? bytes : 1);
	for (;;) {
		int blocked = 0;
		if (members >= wanted && !start) {
			start = now_us();
			end = start + limit;
		}
		while (start && now_us() < end && sent - delivered < out && sent < 1 << 20) {
			struct iovec part = { message, bytes };
			sent_at[sent] = now_us();
			code = cpg_mcast_joined(handle, CPG_TYPE_AGREED, &part, 1);
			if (code == CS_ERR_TRY_AGAIN) {
				blocked = 1;
				break;
			}
			if (code != CS_OK)
				fail("cpg_mcast_joined", code);
			sent++;
		}
		if (start && now_us() >= end && sent == delivered)
			break;
		struct pollfd p = { .fd = fd, .events = POLLIN };
		poll(&p, 1, blocked ? 1 : 100);
		if ((code = cpg_dispatch(handle, CS_DISPATCH_ALL)) != CS_OK)
			fail("cpg_dispatch", code);
	}
	double seconds = (now_us() - start) / 1e6;
	qsort(taken, delivered, sizeof *taken, by_size);
	printf("%.0f messages/s, median %u us, %zu messages\n", delivered / seconds,
	       delivered ? taken[delivered / 2] : 0, delivered);
	return 0;
}
