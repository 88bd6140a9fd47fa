/*
 * qbfeed - sends many different requests over one libqb connection, at a given rate.
 *
 * Build (Debian: apt install gcc libqb-dev):
 *     gcc -O2 -Wall -o qbfeed qbfeed.c -lqb
 *
 *     qbfeed SERVICE RATE
 *         stdin   records: u32 request id, u32 length of the payload (both in host order), payload
 *         RATE    requests per second, 0 = as fast as they are answered
 *     At the end one line: "sent=N errors=N mean=US p99=US max=US" (time of a request in
 *     microseconds). Exit status: 0, or 2 after a failure of the transport.
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

#define MAX_PAYLOAD 65536
#define MAX_ANSWER 1048576

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static void sleep_until(int64_t when)
{
	struct timespec t = { .tv_sec = when / 1000000000, .tv_nsec = when % 1000000000 };

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

int main(int argc, char **argv)
{
	static char payload[MAX_PAYLOAD];
	static char answer[MAX_ANSWER] __attribute__((aligned(8)));
	uint32_t record[2], *times = NULL;
	size_t count = 0, room = 0, errors = 0;
	double sum = 0;

	if (argc != 3) {
		fprintf(stderr, "usage: qbfeed SERVICE RATE\n");
		return 2;
	}
	int64_t gap = atol(argv[2]) > 0 ? 1000000000 / atol(argv[2]) : 0;
	qb_ipcc_connection_t *c = qb_ipcc_connect(argv[1], MAX_ANSWER);
	if (!c) {
		perror("qbfeed: connect");
		return 2;
	}
	int64_t next = now_ns();
	while (fread(record, sizeof(record), 1, stdin) == 1) {
		if (record[1] > MAX_PAYLOAD || fread(payload, 1, record[1], stdin) != record[1]) {
			fprintf(stderr, "qbfeed: bad record\n");
			return 2;
		}
		struct qb_ipc_request_header header = {
			.id = (int32_t)record[0],
			.size = (int32_t)(sizeof(header) + record[1]),
		};
		struct iovec iov[2] = {
			{ &header, sizeof(header) },
			{ payload, record[1] },
		};
		if (gap) {
			sleep_until(next);
			next += gap;
		}
		int64_t start = now_ns();
		ssize_t got = qb_ipcc_sendv_recv(c, iov, 2, answer, sizeof(answer), 60000);
		int64_t took = (now_ns() - start) / 1000;
		if (got < (ssize_t)sizeof(struct qb_ipc_response_header)) {
			fprintf(stderr, "qbfeed: request %zu: %s\n", count, strerror((int)-got));
			return 2;
		}
		errors += ((struct qb_ipc_response_header *)answer)->error != 0;
		if (count == room) {
			room = room ? 2 * room : 1024;
			times = realloc(times, room * sizeof(*times));
			if (!times)
				return 2;
		}
		times[count++] = (uint32_t)took;
		sum += (double)took;
	}
	qb_ipcc_disconnect(c);
	if (count == 0)
		return 0;
	qsort(times, count, sizeof(*times), compare);
	printf("sent=%zu errors=%zu mean=%.0f p99=%u max=%u\n", count, errors, sum / (double)count,
	       times[(count - 1) * 99 / 100], times[count - 1]);
	free(times);
	return 0;
}
