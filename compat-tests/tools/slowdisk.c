/* LD_PRELOAD: every write to config.db or its log takes so many milliseconds longer as stand in the
 * file $SLOW_DISK; it is read anew at each write. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static void delay(int fd)
{
	char link[64], path[PATH_MAX], text[16];
	const char *file = getenv("SLOW_DISK");
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	ssize_t n = readlink(link, path, sizeof(path) - 1);
	if (!file || n <= 0)
		return;
	path[n] = 0;
	if (!strstr(path, "/config.db"))
		return;
	int from = open(file, O_RDONLY | O_CLOEXEC);
	if (from < 0)
		return;
	n = read(from, text, sizeof(text) - 1);
	close(from);
	if (n > 0) {
		text[n] = 0;
		usleep(1000 * atoi(text));
	}
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at)
{
	static ssize_t (*next)(int, const void *, size_t, off64_t);
	if (!next)
		next = dlsym(RTLD_NEXT, "pwrite64");
	delay(fd);
	return next(fd, bytes, length, at);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at)
{
	return pwrite64(fd, bytes, length, at);
}
