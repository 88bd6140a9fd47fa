/*
 * abi - a program of libpmxcfs: checks sizes and offsets of pmxcfs.h when it is compiled, and uses
 *       the library against a running daemon. C and C++ alike; needs nothing but header and library.
 *
 *     abi raw                requests from stdin, a line "OP HEX" each: prints "CODE HEX"
 *     abi helpers            every typed helper, on what the test has prepared
 *     abi readonly           what a client of group www-data may not do
 *     abi poll MS            one call after the other: prints "calls N failed F longest MS"
 *     abi fork N             N children of a process that is connected
 *     abi threads N M        M calls by each of N threads on one client
 *     abi threadfork N M     as threads, while 20 children are made
 *     abi pipeline N         N requests on their way at a time
 *     abi wait TIMEOUT       a call for each line of stdin: prints "CODE MS"
 *
 * Ends with 0, or with a line about what was wrong.
 */
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <pmxcfs.h>

#ifdef __cplusplus
#define ASSERT(what) static_assert(what, #what)
#else
#define ASSERT(what) _Static_assert(what, #what)
#endif
#define SIZE(type, bytes) ASSERT(sizeof(type) == (bytes))
#define OFFSET(type, member, at) ASSERT(offsetof(type, member) == (at))
#define FIELD(type, member, at, bytes) \
    OFFSET(type, member, at);          \
    ASSERT(sizeof(((type *)0)->member) == (bytes))

/* ipc-transport.md 3 and 4 */
SIZE(pmxcfs_request_header, 16);
FIELD(pmxcfs_request_header, id, 0, 4);
FIELD(pmxcfs_request_header, size, 8, 4);
SIZE(pmxcfs_response_header, 24);
FIELD(pmxcfs_response_header, id, 0, 4);
FIELD(pmxcfs_response_header, size, 8, 4);
FIELD(pmxcfs_response_header, error, 16, 4);
SIZE(pmxcfs_connect_request, 24);
FIELD(pmxcfs_connect_request, max_msg_size, 16, 4);
SIZE(pmxcfs_connect_response, 12328);
FIELD(pmxcfs_connect_response, connection_type, 24, 4);
FIELD(pmxcfs_connect_response, max_msg_size, 28, 4);
FIELD(pmxcfs_connect_response, connection, 32, 8);
FIELD(pmxcfs_connect_response, request, 40, 4096);
FIELD(pmxcfs_connect_response, response, 4136, 4096);
FIELD(pmxcfs_connect_response, event, 8232, 4096);

/* ipc-messages.md 2 to 4; the last member of a message of variable length is its beginning */
SIZE(pmxcfs_get_fs_version_request, 16);
SIZE(pmxcfs_get_cluster_info_request, 16);
SIZE(pmxcfs_get_guest_list_request, 16);
SIZE(pmxcfs_get_rrd_dump_request, 16);
FIELD(pmxcfs_set_status_request, name, 16, 256);
OFFSET(pmxcfs_set_status_request, value, 272);
SIZE(pmxcfs_get_status_request, 528);
FIELD(pmxcfs_get_status_request, name, 16, 256);
FIELD(pmxcfs_get_status_request, nodename, 272, 256);
OFFSET(pmxcfs_get_config_request, path, 16);
FIELD(pmxcfs_log_cluster_msg_request, priority, 16, 1);
FIELD(pmxcfs_log_cluster_msg_request, ident_len, 17, 1);
FIELD(pmxcfs_log_cluster_msg_request, tag_len, 18, 1);
OFFSET(pmxcfs_log_cluster_msg_request, strings, 19);
FIELD(pmxcfs_get_cluster_log_request, max_entries, 16, 4);
FIELD(pmxcfs_get_cluster_log_request, reserved, 20, 12);
OFFSET(pmxcfs_get_cluster_log_request, user, 32);
FIELD(pmxcfs_get_guest_config_property_request, vmid, 16, 4);
OFFSET(pmxcfs_get_guest_config_property_request, property, 20);
OFFSET(pmxcfs_verify_token_request, token, 16);
FIELD(pmxcfs_get_guest_config_properties_request, vmid, 16, 4);
FIELD(pmxcfs_get_guest_config_properties_request, count, 20, 1);
OFFSET(pmxcfs_get_guest_config_properties_request, names, 21);
OFFSET(pmxcfs_response, data, 24);

/* perl.md 2 */
ASSERT(PMXCFS_IPC_GET_FS_VERSION == 1 && PMXCFS_IPC_GET_CLUSTER_INFO == 2);
ASSERT(PMXCFS_IPC_GET_GUEST_LIST == 3 && PMXCFS_IPC_SET_STATUS == 4 && PMXCFS_IPC_GET_STATUS == 5);
ASSERT(PMXCFS_IPC_GET_CONFIG == 6 && PMXCFS_IPC_LOG_CLUSTER_MSG == 7);
ASSERT(PMXCFS_IPC_GET_CLUSTER_LOG == 8 && PMXCFS_IPC_GET_RRD_DUMP == 10);
ASSERT(PMXCFS_IPC_GET_GUEST_CONFIG_PROPERTY == 11 && PMXCFS_IPC_VERIFY_TOKEN == 12);
ASSERT(PMXCFS_IPC_GET_GUEST_CONFIG_PROPERTIES == 13);
ASSERT(PMXCFS_IPC_AUTHENTICATE == -1 && PMXCFS_IPC_DISCONNECT == -3);
ASSERT(PMXCFS_IPC_SHARED_MEMORY == 1);
ASSERT(PMXCFS_MAX_MESSAGE == 1048576 && PMXCFS_MAX_RESPONSE_PAYLOAD == 1048552);
ASSERT(PMXCFS_MAX_REQUEST_PAYLOAD == 1048560 && PMXCFS_MAX_FILE_SIZE == 1048576);
ASSERT(PMXCFS_NAME_SIZE == 256 && PMXCFS_MAX_STATUS_VALUE == 32768 && PMXCFS_PATH_SIZE == 4096);
ASSERT(PMXCFS_MAX_PROPERTIES == 255 && PMXCFS_MIN_VMID == 100 && PMXCFS_MAX_LOG_NAME == 255);
ASSERT(PMXCFS_DEFAULT_LOG_ENTRIES == 50 && PMXCFS_RESTART_LIMIT_MS == 10000);
ASSERT(sizeof(PMXCFS_SERVICE) == 5);

/* cluster-protocol.md 4 and 5, cluster-sync.md 1 and 3 */
SIZE(pmxcfs_cpg_header, 16);
FIELD(pmxcfs_cpg_header, message_type, 0, 2);
FIELD(pmxcfs_cpg_header, subtype, 2, 2);
FIELD(pmxcfs_cpg_header, protocol_version, 4, 4);
FIELD(pmxcfs_cpg_header, time, 8, 4);
FIELD(pmxcfs_cpg_header, reserved, 12, 4);
SIZE(pmxcfs_cpg_normal_header, 24);
FIELD(pmxcfs_cpg_normal_header, count, 16, 8);
SIZE(pmxcfs_cpg_epoch, 16);
SIZE(pmxcfs_cpg_state_header, 32);
OFFSET(pmxcfs_cpg_state_header, epoch.counter, 16);
OFFSET(pmxcfs_cpg_state_header, epoch.time, 20);
OFFSET(pmxcfs_cpg_state_header, epoch.nodeid, 24);
OFFSET(pmxcfs_cpg_state_header, epoch.pid, 28);
SIZE(pmxcfs_cpg_verify_request, 40);
FIELD(pmxcfs_cpg_verify_request, checksum_id, 32, 8);
SIZE(pmxcfs_cpg_verify, 72);
FIELD(pmxcfs_cpg_verify, checksum, 40, 32);
SIZE(pmxcfs_dcdb_operation, 20);
FIELD(pmxcfs_dcdb_operation, size, 0, 4);
FIELD(pmxcfs_dcdb_operation, offset, 4, 4);
FIELD(pmxcfs_dcdb_operation, path_len, 8, 4);
FIELD(pmxcfs_dcdb_operation, to_len, 12, 4);
FIELD(pmxcfs_dcdb_operation, flags, 16, 4);
FIELD(pmxcfs_dcdb_unlock, checksum, 0, 32);
OFFSET(pmxcfs_dcdb_unlock, path, 32);
FIELD(pmxcfs_kvstore_update, key, 0, 256);
OFFSET(pmxcfs_kvstore_update, value, 256);
ASSERT(sizeof(PMXCFS_CPG_DCDB_GROUP) == 12 && PMXCFS_CPG_DCDB_GROUP_LENGTH == 12);
ASSERT(sizeof(PMXCFS_CPG_KVSTORE_GROUP) == 15 && PMXCFS_CPG_KVSTORE_GROUP_LENGTH == 15);
ASSERT(PMXCFS_CPG_DCDB_PROTOCOL == 1 && PMXCFS_CPG_KVSTORE_PROTOCOL == 0);
ASSERT(PMXCFS_CPG_NORMAL == 0 && PMXCFS_CPG_SYNC_START == 1 && PMXCFS_CPG_STATE == 2);
ASSERT(PMXCFS_CPG_UPDATE == 3 && PMXCFS_CPG_UPDATE_COMPLETE == 4);
ASSERT(PMXCFS_CPG_VERIFY_REQUEST == 5 && PMXCFS_CPG_VERIFY == 6);
ASSERT(PMXCFS_DCDB_WRITE == 1 && PMXCFS_DCDB_MKDIR == 2 && PMXCFS_DCDB_DELETE == 3);
ASSERT(PMXCFS_DCDB_RENAME == 4 && PMXCFS_DCDB_CREATE == 5 && PMXCFS_DCDB_MTIME == 6);
ASSERT(PMXCFS_DCDB_UNLOCK_REQUEST == 7 && PMXCFS_DCDB_UNLOCK == 8);
ASSERT(PMXCFS_KVSTORE_UPDATE == 1 && PMXCFS_KVSTORE_UPDATE_COMPLETE == 2 && PMXCFS_KVSTORE_LOG == 3);

static pmxcfs_client *client;
static pmxcfs_answer answer;

static void fail(const char *what, int line, long code)
{
    printf("line %d: %s (%ld)\n", line, what, code);
    fflush(stdout);
    _exit(1);
}

#define CHECK(what)                            \
    do {                                       \
        if (!(what))                           \
            fail(#what, __LINE__, (long)errno); \
    } while (0)

#define IS(call, expected)                   \
    do {                                     \
        long code_ = (long)(call);           \
        if (code_ != (long)(expected))       \
            fail(#call, __LINE__, code_);    \
    } while (0)

static int answer_is(const char *text)
{
    return answer.size == strlen(text) && strcmp(answer.data, text) == 0;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void pause_ms(long ms)
{
    struct timespec t;
    t.tv_sec = ms / 1000;
    t.tv_nsec = ms % 1000 * 1000000;
    nanosleep(&t, NULL);
}

static int raw(void)
{
    static char line[2 * 1048576 + 64];
    while (fgets(line, (int)sizeof(line), stdin) != NULL) {
        char *hex = line;
        long op = strtol(line, &hex, 10);
        size_t size = 0, i;
        unsigned byte;
        unsigned char *data = (unsigned char *)malloc(sizeof(line) / 2);
        int code;
        CHECK(data != NULL);
        for (hex += strspn(hex, " "); sscanf(hex, "%2x", &byte) == 1; hex += 2)
            data[size++] = (unsigned char)byte;
        code = pmxcfs_call(client, (int32_t)op, data, size, &answer);
        free(data);
        printf("%d ", code);
        for (i = 0; i < answer.size; i++)
            printf("%02x", (unsigned)(unsigned char)answer.data[i]);
        printf("\n");
        fflush(stdout);
    }
    return 0;
}

static int helpers(void)
{
    const char *names[2] = { "name", "lock" };
    char long_name[257];
    static char value[32769];
    memset(long_name, 'k', 256);
    long_name[256] = '\0';
    memset(value, 'v', sizeof(value));

    IS(pmxcfs_get_fs_version(client, &answer), 0);
    CHECK(strncmp(answer.data, "{\n\"starttime\": ", 15) == 0 && answer.size == strlen(answer.data));
    IS(pmxcfs_get_fs_version(client, NULL), 0);
    IS(pmxcfs_get_cluster_info(client, &answer), 0);
    CHECK(strncmp(answer.data, "{\n\"nodename\": \"node1\"", 21) == 0);
    IS(pmxcfs_get_guest_list(client, &answer), 0);
    CHECK(strstr(answer.data, "\"100\": { \"node\": \"node1\", \"type\": \"qemu\"") != NULL);

    IS(pmxcfs_set_status(client, "kv/abi", "a value", 8), 0);
    IS(pmxcfs_get_status(client, "kv/abi", NULL, &answer), 0);
    CHECK(answer.size == 8 && memcmp(answer.data, "a value", 8) == 0);
    IS(pmxcfs_get_status(client, "kv/abi", "node1", &answer), 0);
    CHECK(answer.size == 8);
    IS(pmxcfs_get_status(client, "kv/abi", "elsewhere", &answer), -ENOENT);
    CHECK(answer_is(""));
    IS(pmxcfs_set_status(client, "kv/abi", NULL, 0), 0);
    IS(pmxcfs_get_status(client, "kv/abi", NULL, &answer), -ENOENT);
    IS(pmxcfs_set_status(client, "kv/abi", value, 32768), 0);
    IS(pmxcfs_get_status(client, "kv/abi", NULL, &answer), 0);
    CHECK(answer.size == 32768 && memcmp(answer.data, value, 32768) == 0);
    IS(pmxcfs_set_status(client, "kv/abi", value, 32769), -EFBIG);
    IS(pmxcfs_set_status(client, long_name, value, 1), -ENAMETOOLONG);
    IS(pmxcfs_set_status(client, long_name + 1, value, 1), 0);
    IS(pmxcfs_get_status(client, long_name + 1, NULL, &answer), 0);
    IS(pmxcfs_set_status(client, long_name + 1, NULL, 0), 0);

    IS(pmxcfs_get_config(client, "abi.cfg", &answer), 0);
    CHECK(answer_is("hello abi\n"));
    IS(pmxcfs_get_config(client, "empty.cfg", &answer), 0);
    CHECK(answer_is(""));
    IS(pmxcfs_get_config(client, "large.cfg", &answer), 0);
    CHECK(answer.size == PMXCFS_MAX_RESPONSE_PAYLOAD && answer.data[answer.size - 1] == 'x');
    IS(pmxcfs_get_config(client, "absent.cfg", &answer), -ENOENT);

    IS(pmxcfs_log_cluster_msg(client, 6, "root@pam", "abi", "said by abi"), 0);
    IS(pmxcfs_log_cluster_msg(client, 8, "root@pam", "abi", "no priority"), -EINVAL);
    IS(pmxcfs_log_cluster_msg(client, 6, long_name, "abi", ""), -ENAMETOOLONG);
    IS(pmxcfs_get_cluster_log(client, 0, NULL, &answer), 0);
    CHECK(strstr(answer.data, "\"tag\": \"abi\"") != NULL && strstr(answer.data, "said by abi") != NULL);
    IS(pmxcfs_get_cluster_log(client, 5, "nobody@pam", &answer), 0);
    CHECK(answer_is("{\n\"data\": [\n]\n}\n"));

    IS(pmxcfs_set_status(client, "rrd/pve2-node/abi", "1:2:3", 6), 0);
    IS(pmxcfs_get_rrd_dump(client, &answer), 0);
    CHECK(strstr(answer.data, "pve2-node/abi:1:2:3\n") != NULL);

    IS(pmxcfs_get_guest_config_property(client, 100, "name", &answer), 0);
    CHECK(answer_is("{\n\"100\":{\"name\": \"abi\"}\n}\n"));
    IS(pmxcfs_get_guest_config_property(client, 0, "absent", &answer), 0);
    CHECK(answer_is("{\n\n}\n"));
    IS(pmxcfs_get_guest_config_property(client, 101, "name", &answer), -ENOENT);
    IS(pmxcfs_get_guest_config_property(client, 99, "name", &answer), -EINVAL);
    IS(pmxcfs_get_guest_config_properties(client, 0, names, 2, &answer), 0);
    CHECK(answer_is("{\n\"100\":{\"name\": \"abi\",\"lock\": \"backup\"}\n}\n"));
    IS(pmxcfs_get_guest_config_properties(client, 0, names, 0, &answer), -EINVAL);
    IS(pmxcfs_get_guest_config_properties(client, 0, names, 256, &answer), -EINVAL);

    IS(pmxcfs_verify_token(client, "root@pam!abi", "0123-4567"), 0);
    IS(pmxcfs_verify_token(client, "root@pam!abi", "0123-4568"), -ENOENT);
    IS(pmxcfs_verify_token(client, "root@pam!abi", "0123-4567\n"), -EINVAL);

    IS(pmxcfs_call(client, 9, NULL, 0, &answer), -ECHRNG);
    IS(pmxcfs_call(client, PMXCFS_IPC_GET_CONFIG, value, (size_t)1 << 20, &answer), -EMSGSIZE);
    IS(pmxcfs_call(client, PMXCFS_IPC_GET_CONFIG, NULL, 1, &answer), -EINVAL);
    IS(pmxcfs_call(NULL, PMXCFS_IPC_GET_CONFIG, NULL, 0, &answer), -EINVAL);
    IS(pmxcfs_get_config(client, NULL, &answer), -EINVAL);
    CHECK(pmxcfs_client_new("") == NULL && pmxcfs_client_new("../x") == NULL);
    IS(pmxcfs_client_connect(client), 0);
    pmxcfs_client_disconnect(client);
    IS(pmxcfs_get_guest_list(client, &answer), 0);
    return 0;
}

static int readonly_client(void)
{
    IS(pmxcfs_get_fs_version(client, &answer), 0);
    IS(pmxcfs_get_config(client, "abi.cfg", &answer), 0);
    IS(pmxcfs_get_config(client, "priv/token.cfg", &answer), -EPERM);
    IS(pmxcfs_get_config(client, "nodes/node1//priv/x", &answer), -EPERM);
    IS(pmxcfs_set_status(client, "kv/abi", "x", 1), -EPERM);
    IS(pmxcfs_log_cluster_msg(client, 6, "a", "b", "c"), -EPERM);
    IS(pmxcfs_verify_token(client, "root@pam!abi", "0123-4567"), 0);
    return 0;
}

static int poll_calls(long ms)
{
    double begin = now(), longest = 0, start;
    long calls = 0, failed = 0;
    while ((start = now()) - begin < (double)ms) {
        int code = pmxcfs_get_fs_version(client, &answer);
        double took = now() - start;
        if (code != 0 || answer.size < 100) {
            fprintf(stderr, "call %ld: %d after %.1f ms\n", calls, code, took);
            failed++;
        }
        calls++;
        if (took > longest)
            longest = took;
        pause_ms(5);
    }
    printf("calls %ld failed %ld longest %.1f\n", calls, failed, longest);
    return 0;
}

static void some_calls(int own, int times)
{
    char key[32], text[32];
    pmxcfs_answer mine;
    int i;
    memset(&mine, 0, sizeof(mine));
    sprintf(key, "kv/child%d", own);
    for (i = 0; i < times; i++) {
        sprintf(text, "%d of %d", i, own);
        IS(pmxcfs_set_status(client, key, text, strlen(text)), 0);
        if (i % 8 == 0) {
            IS(pmxcfs_get_config(client, "large.cfg", &mine), 0);
            CHECK(mine.size == PMXCFS_MAX_RESPONSE_PAYLOAD);
        }
        IS(pmxcfs_get_status(client, key, NULL, &mine), 0);
        CHECK(mine.size == strlen(text) && memcmp(mine.data, text, mine.size) == 0);
    }
    IS(pmxcfs_set_status(client, key, NULL, 0), 0);
    pmxcfs_answer_free(&mine);
}

static int forks(int count)
{
    int i, status, bad = 0;
    some_calls(0, 1);
    for (i = 1; i <= count; i++) {
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            some_calls(i, 10);
            pmxcfs_client_free(client);
            _exit(0);
        }
        some_calls(0, 1);
    }
    while (wait(&status) > 0)
        bad += status != 0;
    some_calls(0, 10);
    IS(bad, 0);
    return 0;
}

static int calls_per_thread;

static void *thread(void *number)
{
    some_calls((int)(size_t)number, calls_per_thread);
    return NULL;
}

static int threads(int count, int calls, int children)
{
    pthread_t all[64];
    int i, status, bad = 0;
    calls_per_thread = calls;
    CHECK(count <= 64);
    for (i = 0; i < count; i++)
        IS(pthread_create(&all[i], NULL, thread, (void *)(size_t)(i + 1)), 0);
    for (i = 0; i < children; i++) {
        pid_t pid;
        pause_ms(2);
        pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            /* most of the time a thread that is not here was in the middle of a call */
            some_calls(100 + i, 5);
            pmxcfs_client_free(client);
            _exit(0);
        }
    }
    while (wait(&status) > 0)
        bad += status != 0;
    IS(bad, 0);
    for (i = 0; i < count; i++)
        IS(pthread_join(all[i], NULL), 0);
    return 0;
}

static int pipeline(int count)
{
    int round, i;
    int32_t op;
    IS(pmxcfs_receive(client, 0, &op, &answer), -EINVAL);
    for (round = 0; round < 50; round++) {
        for (i = 0; i < count; i++)
            IS(pmxcfs_send(client, i % 2 ? PMXCFS_IPC_GET_FS_VERSION : PMXCFS_IPC_GET_CONFIG,
                           "abi.cfg", i % 2 ? 0 : 8), 0);
        IS(pmxcfs_get_fs_version(client, &answer), -EBUSY);
        for (i = 0; i < count; i++) {
            IS(pmxcfs_receive(client, 5000, &op, &answer), 0);
            CHECK(op == (i % 2 ? PMXCFS_IPC_GET_FS_VERSION : PMXCFS_IPC_GET_CONFIG));
            CHECK(i % 2 ? answer.data[0] == '{' : answer_is("hello abi\n"));
        }
    }
    IS(pmxcfs_receive(client, 0, NULL, NULL), -EINVAL);
    IS(pmxcfs_get_fs_version(client, &answer), 0);
    return 0;
}

static int wait_calls(int timeout)
{
    char line[64];
    IS(pmxcfs_client_set_timeout(client, timeout), 0);
    while (fgets(line, (int)sizeof(line), stdin) != NULL) {
        double start = now();
        int code = pmxcfs_call(client, (int32_t)atoi(line), NULL, 0, &answer);
        printf("%d %.0f\n", code, now() - start);
        fflush(stdout);
    }
    return 0;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    int first = argc > 2 ? atoi(argv[2]) : 0, second = argc > 3 ? atoi(argv[3]) : 0, code = 2;
    memset(&answer, 0, sizeof(answer));
    client = pmxcfs_client_new(NULL);
    CHECK(client != NULL);
    if (!strcmp(what, "raw"))
        code = raw();
    else if (!strcmp(what, "helpers"))
        code = helpers();
    else if (!strcmp(what, "readonly"))
        code = readonly_client();
    else if (!strcmp(what, "poll"))
        code = poll_calls(first);
    else if (!strcmp(what, "fork"))
        code = forks(first);
    else if (!strcmp(what, "threads"))
        code = threads(first, second, 0);
    else if (!strcmp(what, "threadfork"))
        code = threads(first, second, 20);
    else if (!strcmp(what, "pipeline"))
        code = pipeline(first);
    else if (!strcmp(what, "wait"))
        code = wait_calls(first);
    pmxcfs_answer_free(&answer);
    pmxcfs_client_free(client);
    pmxcfs_client_free(NULL);
    return code;
}
