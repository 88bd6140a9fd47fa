/*
 * qbdelay - measures how long a status value takes from one node to another.
 *
 * Build (Debian: apt install gcc libqb-dev):
 *     gcc -O2 -Wall -o qbdelay qbdelay.c -lqb
 *
 *     qbdelay SERVICE set KEY GAP_US COUNT
 *         sets KEY to the time (CLOCK_MONOTONIC, ns) COUNT times, one every GAP_US
 *     qbdelay SERVICE watch KEY NODE SECONDS
 *         asks for KEY of NODE all the time (every 200 us); at the end one line:
 *         "seen=N mean=US p99=US max=US": how old a value was when it was there for the first time
 * Exit status: 0, or 2 after a failure of the transport.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#include <qb/qbipc_common.h>
#include <qb/qbipcc.h>

#define MAX_ANSWER 1048576
#define SET_STATUS 4
#define GET_STATUS 5

static char answer[MAX_ANSWER] __attribute__((aligned(8)));

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void sleep_us(int64_t us)
{
	struct timespec t = { .tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000 };

	nanosleep(&t, NULL);
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

/* Sends KEY and `data`; the length of the answer's payload, or -1 if there is none. */
static ssize_t request(qb_ipcc_connection_t *c, int32_t id, const char *key, void *data, size_t len)
{
	char name[256] = { 0 };
	struct qb_ipc_request_header header = {
		.id = id,
		.size = (int32_t)(sizeof(header) + sizeof(name) + len),
	};
	struct iovec iov[3] = {
		{ &header, sizeof(header) },
		{ name, sizeof(name) },
		{ data, len },
	};

	snprintf(name, sizeof(name), "%s", key);
	ssize_t got = qb_ipcc_sendv_recv(c, iov, 3, answer, sizeof(answer), 60000);
	if (got < (ssize_t)sizeof(struct qb_ipc_response_header)) {
		fprintf(stderr, "qbdelay: %s\n", strerror((int)-got));
		exit(2);
	}
	if (((struct qb_ipc_response_header *)answer)->error != 0)
		return -1;
	return got - (ssize_t)sizeof(struct qb_ipc_response_header);
}

static int watch(qb_ipcc_connection_t *c, const char *key, const char *node, long seconds)
{
	int64_t end = now_ns() + (int64_t)seconds * 1000000000, last = 0;
	size_t count = 0, room = 1 << 20;
	uint32_t *ages = malloc(room * sizeof(*ages));
	double sum = 0;

	while (now_ns() < end && count < room) {
		char name[256] = { 0 };
		int64_t sent;

		snprintf(name, sizeof(name), "%s", node);
		ssize_t len = request(c, GET_STATUS, key, name, sizeof(name));
		if (len == (ssize_t)sizeof(sent)) {
			memcpy(&sent, answer + sizeof(struct qb_ipc_response_header), sizeof(sent));
			if (sent != last) {
				int64_t age = (now_ns() - sent) / 1000;

				/* What was there at the start is not new. */
				if (last != 0) {
					ages[count++] = (uint32_t)age;
					sum += (double)age;
				}
				last = sent;
			}
		}
		sleep_us(200);
	}
	if (count == 0) {
		printf("seen=0 mean=0 p99=0 max=0\n");
		return 0;
	}
	qsort(ages, count, sizeof(*ages), compare);
	printf("seen=%zu mean=%.0f p99=%u max=%u\n", count, sum / (double)count,
	       ages[(count - 1) * 99 / 100], ages[count - 1]);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc != 6) {
		fprintf(stderr, "usage: qbdelay SERVICE set KEY GAP_US COUNT\n"
				"       qbdelay SERVICE watch KEY NODE SECONDS\n");
		return 2;
	}
	qb_ipcc_connection_t *c = qb_ipcc_connect(argv[1], MAX_ANSWER);
	if (!c) {
		perror("qbdelay: connect");
		return 2;
	}
	if (strcmp(argv[2], "watch") == 0)
		return watch(c, argv[3], argv[4], atol(argv[5]));
	for (long i = 0; i < atol(argv[5]); i++) {
		int64_t now = now_ns();

		request(c, SET_STATUS, argv[3], &now, sizeof(now));
		sleep_us(atol(argv[4]));
	}
	return 0;
}
