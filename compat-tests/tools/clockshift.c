/* LD_PRELOAD: time() runs ahead by the seconds that stand in the file $CLOCK_SHIFT.
 * For what the reference does once an hour, without waiting for it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

time_t time(time_t *out)
{
	struct timespec now;
	char text[32];
	const char *path = getenv("CLOCK_SHIFT");
	clock_gettime(CLOCK_REALTIME, &now);
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (fd >= 0) {
		ssize_t n = read(fd, text, sizeof(text) - 1);
		if (n > 0) {
			text[n] = 0;
			now.tv_sec += atol(text);
		}
		close(fd);
	}
	if (out)
		*out = now.tv_sec;
	return now.tv_sec;
}
