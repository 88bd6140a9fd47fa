/*
 * cpgsilent - a member of the database group that never says what it has, so that the others wait
 *             for it, and sends them so many MiB of changes meanwhile. Then it stays until it is killed.
 *
 * Build (Debian: apt install gcc libcpg-dev):
 *     gcc -O2 -Wall -o cpgsilent cpgsilent.c -lcpg
 *
 *     cpgsilent MIB
 * Output: "sent" when all of it has come back.
 */
#include <corosync/cpg.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PART = 512 << 10, WINDOW = 8 };

static size_t delivered;

static void on_deliver(cpg_handle_t h, const struct cpg_name *g, uint32_t node, uint32_t pid,
		       void *msg, size_t len)
{
	uint32_t own;
	cpg_local_get(h, &own);
	if (node == own && pid == (uint32_t)getpid())
		delivered++;
}

static void fail(const char *what, int code)
{
	fprintf(stderr, "cpgsilent: %s failed: %d\n", what, code);
	exit(1);
}

int main(int argc, char **argv)
{
	cpg_callbacks_t callbacks = { .cpg_deliver_fn = on_deliver };
	struct cpg_name group = { .length = 12, .value = "pve_dcdb_v1" };
	/* header of a change (cluster-protocol.md 5): type 0, subtype 1, protocol 1, time, 0, count */
	struct {
		uint16_t type, subtype;
		uint32_t protocol, time, reserved;
		uint64_t count;
		char content[PART];
	} *message = calloc(1, sizeof *message);
	cpg_handle_t handle;
	size_t sent = 0, parts;
	int code, fd;

	if (argc != 2) {
		fprintf(stderr, "usage: cpgsilent MIB\n");
		return 2;
	}
	parts = 2 * strtoul(argv[1], NULL, 10);
	if ((code = cpg_initialize(&handle, &callbacks)) != CS_OK)
		fail("cpg_initialize", code);
	if ((code = cpg_fd_get(handle, &fd)) != CS_OK)
		fail("cpg_fd_get", code);
	while ((code = cpg_join(handle, &group)) == CS_ERR_TRY_AGAIN)
		usleep(1000);
	if (code != CS_OK)
		fail("cpg_join", code);
	message->subtype = 1;
	message->protocol = 1;
	message->time = time(NULL);
	while (delivered < parts) {
		int blocked = 0;
		while (sent < parts && sent - delivered < WINDOW && !blocked) {
			struct iovec part = { message, sizeof *message };
			message->count = sent + 1;
			code = cpg_mcast_joined(handle, CPG_TYPE_AGREED, &part, 1);
			if (code == CS_OK)
				sent++;
			else if (code == CS_ERR_TRY_AGAIN)
				blocked = 1;
			else
				fail("cpg_mcast_joined", code);
		}
		struct pollfd p = { .fd = fd, .events = POLLIN };
		poll(&p, 1, blocked ? 1 : 100);
		if ((code = cpg_dispatch(handle, CS_DISPATCH_ALL)) != CS_OK)
			fail("cpg_dispatch", code);
	}
	puts("sent");
	fflush(stdout);
	fail("cpg_dispatch", cpg_dispatch(handle, CS_DISPATCH_BLOCKING));
}
