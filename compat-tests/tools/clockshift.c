/* LD_PRELOAD: the wall clock runs ahead by the seconds that stand in the file $CLOCK_SHIFT: time(),
 * and with $CLOCK_SHIFT_ALL set clock_gettime(), too. Other clocks are left alone.
 * For what a daemon does once an hour, without waiting for it, and for clocks that are set. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long shift(void)
{
	char text[32];
	long seconds = 0;
	const char *path = getenv("CLOCK_SHIFT");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (fd >= 0) {
		ssize_t n = read(fd, text, sizeof(text) - 1);
		if (n > 0) {
			text[n] = 0;
			seconds = atol(text);
		}
		close(fd);
	}
	return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int result = (int)syscall(SYS_clock_gettime, clock, now);
	if (result == 0 && clock == CLOCK_REALTIME && getenv("CLOCK_SHIFT_ALL"))
		now->tv_sec += shift();
	return result;
}

time_t time(time_t *out)
{
	struct timespec now;
	syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
	now.tv_sec += shift();
	if (out)
		*out = now.tv_sec;
	return now.tv_sec;
}
