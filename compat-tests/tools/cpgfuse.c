/*
 * cpgfuse - the least that a replicated file system can be: one thread between the kernel's FUSE
 *           device and corosync. A mkdir, create or write goes to all nodes as one message and is
 *           answered when that is delivered. No tree, no content, no checks. With DATABASE what was
 *           delivered together is first written in one SQLite transaction: a row for each and the
 *           version. Good for measuring only.
 *
 *           As "careful" it answers only when a message that it sent after the delivery has come back:
 *           the next request's, or a round to itself. A node that is cut off has not answered then what
 *           the others never get.
 *
 * Build (Debian: apt install gcc libcpg-dev libsqlite3-dev):
 *     gcc -O2 -Wall -o cpgfuse cpgfuse.c -lcpg -lsqlite3
 *
 *     cpgfuse serve|careful MEMBERS DIRECTORY [DATABASE]
 *                                                 joins, waits until the group has MEMBERS members,
 *                                                 mounts and serves until it is killed
 *     cpgfuse follow [DATABASE]                   joins and takes what others send; writes it at
 *                                                 most 10 ms late
 */
#include <corosync/cpg.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sqlite3.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FOREVER 86400
#define DIRECTORY (1ull << 40) /* this bit of a node id */
#define LARGEST (132 * 1024)
#define MOST 65536

/* What goes round: the request, then the name or the content. Where it is delivered, what is created
   gets its node, the same everywhere. */
struct message {
	uint64_t unique, node;
	uint64_t number; /* of this sender's messages; where it arrived: how many were sent by then */
	uint32_t opcode, bytes;
};

static size_t members;
static int following; /* the other nodes' messages, which nobody here waits for */
static uint32_t own_node;
static uint64_t last_node = FUSE_ROOT_ID;
static int fuse;
static sqlite3 *db;
static sqlite3_stmt *begin, *commit, *put_row, *put_version;
static struct message arrived[MOST];
static size_t arrivals;

static int careful;
static uint64_t sent, came_back;     /* numbers of own messages */
static struct message waiting[MOST]; /* stored, not answered */
static size_t waits;
static cpg_handle_t rounds;
static size_t covered; /* of those that wait and arrived, by the round that is under way */
static int under_way;

static void fail(const char *what, int code)
{
	fprintf(stderr, "cpgfuse: %s failed: %d\n", what, code);
	exit(1);
}

static void reply(uint64_t unique, int error, const void *data, size_t bytes)
{
	struct fuse_out_header head = { .len = sizeof head + bytes, .error = -error, .unique = unique };
	struct iovec parts[2] = { { &head, sizeof head }, { (void *)data, bytes } };
	if (writev(fuse, parts, bytes ? 2 : 1) < 0 && errno != ENOENT)
		fail("reply", errno);
}

static struct fuse_attr attributes(uint64_t node)
{
	int is_directory = node == FUSE_ROOT_ID || node & DIRECTORY;
	return (struct fuse_attr){ .ino = node, .nlink = 1, .mode = is_directory ? S_IFDIR | 0755 : S_IFREG | 0644 };
}

static struct fuse_entry_out entry(uint64_t node)
{
	return (struct fuse_entry_out){
		.nodeid = node, .entry_valid = FOREVER, .attr_valid = FOREVER, .attr = attributes(node)
	};
}

/* Answers a request whose message has come back. */
static void complete(const struct message *m)
{
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} created;
	struct fuse_write_out written = { .size = m->bytes };

	memset(&created, 0, sizeof created);
	switch (m->opcode) {
	case FUSE_WRITE:
		reply(m->unique, 0, &written, sizeof written);
		break;
	case FUSE_MKDIR:
		created.entry = entry(m->node);
		reply(m->unique, 0, &created.entry, sizeof created.entry);
		break;
	case FUSE_CREATE:
		created.entry = entry(m->node);
		created.open.open_flags = FOPEN_DIRECT_IO;
		reply(m->unique, 0, &created, sizeof created);
		break;
	}
}

static void on_deliver(cpg_handle_t h, const struct cpg_name *g, uint32_t node, uint32_t pid,
		       void *msg, size_t len)
{
	int own = node == own_node && pid == (uint32_t)getpid();
	if (!own && !following)
		return;
	if (arrivals == MOST)
		fail("taking so many messages", MOST);
	struct message *m = &arrived[arrivals++];
	*m = *(struct message *)msg;
	if (own) {
		came_back = m->number;
		m->number = sent;
	}
	if (m->opcode != FUSE_WRITE)
		m->node = ++last_node | (m->opcode == FUSE_MKDIR ? DIRECTORY : 0);
}

static void on_confchg(cpg_handle_t h, const struct cpg_name *g, const struct cpg_address *m,
		       size_t n, const struct cpg_address *left, size_t nleft,
		       const struct cpg_address *joined, size_t njoined)
{
	members = n;
}

static void prepare(const char *path)
{
	const char *schema = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
			     "CREATE TABLE tree (inode INTEGER PRIMARY KEY, version INTEGER, data BLOB)";
	const char *row = "REPLACE INTO tree VALUES (?1, ?2, ?3)";
	if (sqlite3_open(path, &db) || sqlite3_exec(db, schema, 0, 0, 0) ||
	    sqlite3_prepare_v2(db, "BEGIN IMMEDIATE", -1, &begin, 0) ||
	    sqlite3_prepare_v2(db, "COMMIT", -1, &commit, 0) ||
	    sqlite3_prepare_v2(db, row, -1, &put_row, 0) ||
	    sqlite3_prepare_v2(db, "REPLACE INTO tree VALUES (0, ?1, NULL)", -1, &put_version, 0))
		fail(sqlite3_errmsg(db), 0);
}

static void run(sqlite3_stmt *statement)
{
	if (sqlite3_step(statement) != SQLITE_DONE)
		fail(sqlite3_errmsg(db), 0);
	sqlite3_reset(statement);
}

/* A row for each node: empty when it is created, with 1 KiB when it is written. */
static void store(void)
{
	static sqlite3_int64 version;
	static char content[1024];
	if (!db || !arrivals)
		return;
	run(begin);
	for (size_t i = 0; i < arrivals; i++) {
		int bytes = arrived[i].opcode == FUSE_WRITE ? sizeof content : 0;
		sqlite3_bind_int64(put_row, 1, arrived[i].node & ~DIRECTORY);
		sqlite3_bind_int64(put_row, 2, ++version);
		sqlite3_bind_blob(put_row, 3, content, bytes, SQLITE_STATIC);
		run(put_row);
	}
	sqlite3_bind_int64(put_version, 1, version);
	run(put_version);
	run(commit);
}

static void send_to_all(cpg_handle_t cpg, const struct fuse_in_header *in, const void *data, size_t bytes)
{
	struct message m = { in->unique, in->nodeid, ++sent, in->opcode, bytes };
	struct iovec parts[2] = { { &m, sizeof m }, { (void *)data, bytes } };
	int code;
	while ((code = cpg_mcast_joined(cpg, CPG_TYPE_AGREED, parts, 2)) == CS_ERR_TRY_AGAIN)
		usleep(100);
	if (code != CS_OK)
		fail("cpg_mcast_joined", code);
}

/* Takes one request; returns 0 if there is none. */
static int serve(cpg_handle_t cpg)
{
	static char buffer[LARGEST];
	ssize_t got = read(fuse, buffer, sizeof buffer);
	struct fuse_in_header *in = (void *)buffer;
	const char *data = buffer + sizeof *in;

	if (got < 0) {
		if (errno == EAGAIN)
			return 0;
		if (errno == ENOENT || errno == EINTR)
			return 1;
		exit(errno == ENODEV ? 0 : 1);
	}
	switch (in->opcode) {
	case FUSE_INIT: {
		struct fuse_init_out out = { .major = 7, .minor = 31, .max_readahead = 4096,
					     .flags = FUSE_BIG_WRITES | FUSE_MAX_PAGES, .max_write = LARGEST - 4096,
					     .max_background = 64, .congestion_threshold = 48, .max_pages = 32 };
		reply(in->unique, 0, &out, sizeof out);
		break;
	}
	case FUSE_GETATTR: {
		struct fuse_attr_out out = { .attr_valid = FOREVER, .attr = attributes(in->nodeid) };
		reply(in->unique, 0, &out, sizeof out);
		break;
	}
	case FUSE_LOOKUP: {
		struct fuse_entry_out none = { .entry_valid = FOREVER };
		reply(in->unique, 0, &none, sizeof none);
		break;
	}
	case FUSE_MKDIR:
		data += sizeof(struct fuse_mkdir_in);
		send_to_all(cpg, in, data, strlen(data) + 1);
		break;
	case FUSE_CREATE:
		data += sizeof(struct fuse_create_in);
		send_to_all(cpg, in, data, strlen(data) + 1);
		break;
	case FUSE_WRITE: {
		const struct fuse_write_in *write_in = (const void *)data;
		send_to_all(cpg, in, data + sizeof *write_in, write_in->size);
		break;
	}
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break;
	case FUSE_RELEASE:
	case FUSE_OPENDIR:
	case FUSE_RELEASEDIR: {
		struct fuse_open_out out = { 0 };
		reply(in->unique, 0, &out, in->opcode == FUSE_OPENDIR ? sizeof out : 0);
		break;
	}
	default:
		reply(in->unique, ENOSYS, 0, 0);
	}
	return 1;
}

static void on_round(cpg_handle_t h, const struct cpg_name *g, uint32_t node, uint32_t pid, void *msg,
		     size_t len)
{
	under_way = 0;
	for (size_t i = 0; i < covered; i++)
		waiting[i].number = 0;
}

static void no_confchg(cpg_handle_t h, const struct cpg_name *g, const struct cpg_address *m, size_t n,
		       const struct cpg_address *left, size_t nleft, const struct cpg_address *joined,
		       size_t njoined)
{
}

/* A round, unless something else will show what it would. */
static void ask(void)
{
	struct iovec part = { &under_way, sizeof under_way };
	uint64_t last = arrivals ? arrived[arrivals - 1].number : waits ? waiting[waits - 1].number : 0;
	int code;

	if (under_way || !last || last < sent)
		return;
	while ((code = cpg_mcast_joined(rounds, CPG_TYPE_AGREED, &part, 1)) == CS_ERR_TRY_AGAIN)
		usleep(100);
	if (code != CS_OK)
		fail("cpg_mcast_joined", code);
	under_way = 1;
	covered = waits + arrivals;
}

/* Answers what is stored and confirmed, in order. */
static void answer(void)
{
	size_t done = 0;

	for (size_t i = 0; i < arrivals; i++)
		waiting[waits++] = arrived[i];
	arrivals = 0;
	while (done < waits && (!careful || waiting[done].number < came_back))
		complete(&waiting[done++]);
	memmove(waiting, waiting + done, (waits - done) * sizeof *waiting);
	waits -= done;
	covered = covered > done ? covered - done : 0;
}

static cpg_handle_t join(const char *name, cpg_callbacks_t callbacks, int *fd)
{
	struct cpg_name group = { .length = strlen(name) + 1 };
	cpg_handle_t cpg;
	int code;

	memcpy(group.value, name, group.length);
	if ((code = cpg_initialize(&cpg, &callbacks)) != CS_OK)
		fail("cpg_initialize", code);
	if ((code = cpg_fd_get(cpg, fd)) != CS_OK)
		fail("cpg_fd_get", code);
	if ((code = cpg_local_get(cpg, &own_node)) != CS_OK)
		fail("cpg_local_get", code);
	while ((code = cpg_join(cpg, &group)) == CS_ERR_TRY_AGAIN)
		usleep(1000);
	if (code != CS_OK)
		fail("cpg_join", code);
	return cpg;
}

static uint64_t now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000ull + t.tv_nsec / 1000;
}

/* Writes what comes from others, at most 10 ms late. */
static void follow(cpg_handle_t cpg, int fd)
{
	uint64_t due = 0;
	int code;

	following = 1;
	for (;;) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		poll(&p, 1, arrivals ? 10 : -1);
		if ((code = cpg_dispatch(cpg, CS_DISPATCH_ALL)) != CS_OK)
			fail("cpg_dispatch", code);
		if (arrivals && !due)
			due = now_us() + 10000;
		if (due && now_us() >= due) {
			store();
			arrivals = due = 0;
		}
	}
}

static void serve_all(cpg_handle_t cpg, int cpg_fd, int rounds_fd)
{
	int code;

	for (;;) {
		struct pollfd fds[3] = { { .fd = fuse, .events = POLLIN },
					 { .fd = cpg_fd, .events = POLLIN },
					 { .fd = rounds_fd, .events = POLLIN } };
		poll(fds, 3, -1);
		if (fds[2].revents && (code = cpg_dispatch(rounds, CS_DISPATCH_ALL)) != CS_OK)
			fail("cpg_dispatch", code);
		if (fds[1].revents && (code = cpg_dispatch(cpg, CS_DISPATCH_ALL)) != CS_OK)
			fail("cpg_dispatch", code);
		if (careful) {
			while (fds[0].revents && serve(cpg))
				;
			fds[0].revents = 0;
			ask();
		}
		store();
		answer();
		while (fds[0].revents && serve(cpg))
			;
	}
}

static void mount_at(const char *directory)
{
	char options[128];

	if ((fuse = open("/dev/fuse", O_RDWR | O_NONBLOCK | O_CLOEXEC)) < 0)
		fail("open /dev/fuse", errno);
	snprintf(options, sizeof options,
		 "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", fuse);
	if (mount("cpgfuse", directory, "fuse", MS_NOSUID | MS_NODEV, options))
		fail("mount", errno);
}

int main(int argc, char **argv)
{
	cpg_callbacks_t callbacks = { .cpg_deliver_fn = on_deliver, .cpg_confchg_fn = on_confchg };
	cpg_callbacks_t on_rounds = { .cpg_deliver_fn = on_round, .cpg_confchg_fn = no_confchg };
	int serving, cpg_fd, code, rounds_fd = -1;

	careful = argc >= 2 && !strcmp(argv[1], "careful");
	serving = argc >= 4 && argc <= 5 && (careful || !strcmp(argv[1], "serve"));

	if (!serving && !(argc >= 2 && argc <= 3 && !strcmp(argv[1], "follow"))) {
		fprintf(stderr, "usage: cpgfuse serve|careful MEMBERS DIRECTORY [DATABASE] | follow [DATABASE]\n");
		return 2;
	}
	if (argc == (serving ? 5 : 3))
		prepare(argv[argc - 1]);
	cpg_handle_t cpg = join("cpgfuse", callbacks, &cpg_fd);
	if (!serving)
		follow(cpg, cpg_fd);
	while (members < (size_t)atoi(argv[2])) {
		if ((code = cpg_dispatch(cpg, CS_DISPATCH_ONE)) != CS_OK)
			fail("cpg_dispatch", code);
	}
	if (careful)
		rounds = join("cpgfuse_rounds", on_rounds, &rounds_fd);
	mount_at(argv[3]);
	serve_all(cpg, cpg_fd, rounds_fd);
}
