/*
 * pmxcfs.h - messages of the cluster filesystem daemon pmxcfs and a client for it.
 *
 * Made by cbindgen from the crate libpmxcfs: do not edit.
 *
 * Link with `pkg-config --libs pmxcfs`. Functions return 0 (or a size) or a negative errno.
 */

#ifndef PMXCFS_H
#define PMXCFS_H

#include <stddef.h>
#include <stdint.h>

/**
 * Name of the service: an abstract socket of this name, filled up with NUL to 107 bytes.
 */
#define PMXCFS_SERVICE "pve2"

/**
 * Its existence tells clients to wait for a daemon that is about to come back.
 */
#define PMXCFS_RESTART_FLAG "/run/pve-cluster/cfs-restart-flag"

/**
 * CPG group of the database. Its name includes the NUL.
 */
#define PMXCFS_CPG_DCDB_GROUP "pve_dcdb_v1"

/**
 * CPG group of node status and cluster log. Its name includes the NUL.
 */
#define PMXCFS_CPG_KVSTORE_GROUP "pve_kvstore_v1"


/**
 * Bytes of that name, NUL included.
 */
#define PMXCFS_CPG_DCDB_GROUP_LENGTH 12

/**
 * Protocol version of that group.
 */
#define PMXCFS_CPG_DCDB_PROTOCOL 1

/**
 * Bytes of that name, NUL included.
 */
#define PMXCFS_CPG_KVSTORE_GROUP_LENGTH 15

/**
 * Protocol version of that group.
 */
#define PMXCFS_CPG_KVSTORE_PROTOCOL 0

/**
 * An application message; its number is the subtype.
 */
#define PMXCFS_CPG_NORMAL 0

/**
 * Start of a synchronisation.
 */
#define PMXCFS_CPG_SYNC_START 1

/**
 * State of one member.
 */
#define PMXCFS_CPG_STATE 2

/**
 * One inode, from the leader.
 */
#define PMXCFS_CPG_UPDATE 3

/**
 * No more of them.
 */
#define PMXCFS_CPG_UPDATE_COMPLETE 4

/**
 * Ask for a checksum.
 */
#define PMXCFS_CPG_VERIFY_REQUEST 5

/**
 * A checksum.
 */
#define PMXCFS_CPG_VERIFY 6

/**
 * Subtype: write, truncate.
 */
#define PMXCFS_DCDB_WRITE 1

/**
 * Subtype: make a directory.
 */
#define PMXCFS_DCDB_MKDIR 2

/**
 * Subtype: remove a file or directory.
 */
#define PMXCFS_DCDB_DELETE 3

/**
 * Subtype: rename.
 */
#define PMXCFS_DCDB_RENAME 4

/**
 * Subtype: make a file.
 */
#define PMXCFS_DCDB_CREATE 5

/**
 * Subtype: set the modification time.
 */
#define PMXCFS_DCDB_MTIME 6

/**
 * Subtype: ask whether a lock has expired.
 */
#define PMXCFS_DCDB_UNLOCK_REQUEST 7

/**
 * Subtype: remove an expired lock.
 */
#define PMXCFS_DCDB_UNLOCK 8

/**
 * Subtype: set or remove a status value.
 */
#define PMXCFS_KVSTORE_UPDATE 1

/**
 * Subtype: never sent.
 */
#define PMXCFS_KVSTORE_UPDATE_COMPLETE 2

/**
 * Subtype: an entry of the cluster log.
 */
#define PMXCFS_KVSTORE_LOG 3

/**
 * How long clients wait for a daemon that left the flag, in milliseconds.
 */
#define PMXCFS_RESTART_LIMIT_MS 10000

/**
 * Get the versions of everything: JSON.
 */
#define PMXCFS_IPC_GET_FS_VERSION 1

/**
 * Get cluster name and members: JSON.
 */
#define PMXCFS_IPC_GET_CLUSTER_INFO 2

/**
 * Get the guests of all nodes: JSON.
 */
#define PMXCFS_IPC_GET_GUEST_LIST 3

/**
 * Set or remove a status value of this node.
 */
#define PMXCFS_IPC_SET_STATUS 4

/**
 * Get a status value of a node.
 */
#define PMXCFS_IPC_GET_STATUS 5

/**
 * Get the content of a file.
 */
#define PMXCFS_IPC_GET_CONFIG 6

/**
 * Write an entry to the cluster log.
 */
#define PMXCFS_IPC_LOG_CLUSTER_MSG 7

/**
 * Get entries of the cluster log: JSON.
 */
#define PMXCFS_IPC_GET_CLUSTER_LOG 8

/**
 * Get the newest round-robin data: lines `key:data`.
 */
#define PMXCFS_IPC_GET_RRD_DUMP 10

/**
 * Get one property of one or all guests: JSON.
 */
#define PMXCFS_IPC_GET_GUEST_CONFIG_PROPERTY 11

/**
 * Ask whether a line stands in the token file.
 */
#define PMXCFS_IPC_VERIFY_TOKEN 12

/**
 * Get several properties of one or all guests: JSON.
 */
#define PMXCFS_IPC_GET_GUEST_CONFIG_PROPERTIES 13

/**
 * Id of both messages of the handshake.
 */
#define PMXCFS_IPC_AUTHENTICATE -1

/**
 * Id of a request that ends the connection without an answer.
 */
#define PMXCFS_IPC_DISCONNECT -3

/**
 * Connection type of shared memory, the only one.
 */
#define PMXCFS_IPC_SHARED_MEMORY 1

/**
 * Bytes of the largest message, header included, both ways.
 */
#define PMXCFS_MAX_MESSAGE 1048576

/**
 * Bytes of the largest payload of a request.
 */
#define PMXCFS_MAX_REQUEST_PAYLOAD (PMXCFS_MAX_MESSAGE - 16)

/**
 * Bytes of the largest payload of a response.
 */
#define PMXCFS_MAX_RESPONSE_PAYLOAD (PMXCFS_MAX_MESSAGE - 24)

/**
 * Bytes of a key or node name field; the last one counts as NUL.
 */
#define PMXCFS_NAME_SIZE 256

/**
 * Bytes of the largest status value.
 */
#define PMXCFS_MAX_STATUS_VALUE 32768

/**
 * Largest number of properties in one request.
 */
#define PMXCFS_MAX_PROPERTIES 255

/**
 * Bytes of ident and tag of a log entry, NUL included.
 */
#define PMXCFS_MAX_LOG_NAME 255

/**
 * Entries of the cluster log if none are asked for.
 */
#define PMXCFS_DEFAULT_LOG_ENTRIES 50

/**
 * Bytes of the largest file.
 */
#define PMXCFS_MAX_FILE_SIZE 1048576

/**
 * Smallest id of a guest.
 */
#define PMXCFS_MIN_VMID 100

/**
 * Bytes of a path prefix in the connection response, NUL included.
 */
#define PMXCFS_PATH_SIZE 4096

/**
 * A client of the daemon. It connects when it is first used, and again after the daemon was
 * restarted: while the restart flag is there, calls wait up to 10 seconds for it.
 *
 * All functions may be called by several threads at a time with the same client, except
 * pmxcfs_client_free; calls wait for each other, also those with a time-out. After a fork the
 * child makes a connection of its own.
 */
typedef struct pmxcfs_client pmxcfs_client;

/**
 * Payload of an answer. Begin with all zero; it may be used for any number of calls, which
 * overwrite it, and is freed by pmxcfs_answer_free. After an error the content is empty.
 */
typedef struct pmxcfs_answer {
    /**
     * `size` bytes and a NUL behind them; NULL before the first call.
     */
    char *data;
    /**
     * Bytes of the payload, without that NUL.
     */
    size_t size;
    /**
     * Bytes allocated; not to be changed.
     */
    size_t capacity;
} pmxcfs_answer;

/**
 * Called once with the size of an answer (never 0); gives the memory it is copied to, or NULL.
 * It must return, and must not call the library.
 */
typedef void *(*pmxcfs_place)(size_t size, void *arg);

/**
 * Every request begins with it.
 */
typedef struct pmxcfs_request_header {
    /**
     * Operation.
     */
    int32_t id;
    uint32_t pad0;
    /**
     * Bytes of the whole request.
     */
    int32_t size;
    uint32_t pad1;
} pmxcfs_request_header;

/**
 * Every response begins with it.
 */
typedef struct pmxcfs_response_header {
    /**
     * Operation of the request.
     */
    int32_t id;
    uint32_t pad0;
    /**
     * Bytes of the whole response.
     */
    int32_t size;
    uint32_t pad1;
    /**
     * 0 or a negative errno; an error has no payload.
     */
    int32_t error;
    uint32_t pad2;
} pmxcfs_response_header;

/**
 * First message of a client, sent on the socket.
 */
typedef struct pmxcfs_connect_request {
    /**
     * Id -1, size 24.
     */
    struct pmxcfs_request_header header;
    /**
     * Bytes of the largest message wanted.
     */
    uint32_t max_msg_size;
    uint32_t pad;
} pmxcfs_connect_request;

/**
 * Answer to it. Each prefix, with `-header` and `-data` appended, names the two files of a ring.
 */
typedef struct pmxcfs_connect_response {
    /**
     * Id -1, size 12328; with an error the rest means nothing.
     */
    struct pmxcfs_response_header header;
    /**
     * 1: shared memory.
     */
    int32_t connection_type;
    /**
     * Bytes of the largest message of this connection.
     */
    uint32_t max_msg_size;
    /**
     * Without meaning for clients.
     */
    uint64_t connection;
    uint8_t request[4096];
    uint8_t response[4096];
    uint8_t event[4096];
} pmxcfs_connect_response;

/**
 * SET_STATUS. Without a value the key is removed.
 */
typedef struct pmxcfs_set_status_request {
    struct pmxcfs_request_header header;
    /**
     * Key, filled up with NUL.
     */
    uint8_t name[256];
    /**
     * 0 to 32768 bytes.
     */
    uint8_t value[1];
} pmxcfs_set_status_request;

/**
 * GET_STATUS.
 */
typedef struct pmxcfs_get_status_request {
    struct pmxcfs_request_header header;
    /**
     * Key, filled up with NUL.
     */
    uint8_t name[256];
    /**
     * Node, filled up with NUL; empty: the own one.
     */
    uint8_t nodename[256];
} pmxcfs_get_status_request;

/**
 * GET_CONFIG.
 */
typedef struct pmxcfs_get_config_request {
    struct pmxcfs_request_header header;
    /**
     * Path below /etc/pve, with its NUL.
     */
    uint8_t path[1];
} pmxcfs_get_config_request;

/**
 * LOG_CLUSTER_MSG.
 */
typedef struct pmxcfs_log_cluster_msg_request {
    struct pmxcfs_request_header header;
    /**
     * As of syslog, 0 to 7.
     */
    uint8_t priority;
    /**
     * Bytes of the ident, NUL included.
     */
    uint8_t ident_len;
    /**
     * Bytes of the tag, NUL included.
     */
    uint8_t tag_len;
    /**
     * Ident, tag and message, each with its NUL.
     */
    uint8_t strings[1];
} pmxcfs_log_cluster_msg_request;

/**
 * GET_CLUSTER_LOG.
 */
typedef struct pmxcfs_get_cluster_log_request {
    struct pmxcfs_request_header header;
    /**
     * 0 means 50.
     */
    uint32_t max_entries;
    uint32_t reserved[3];
    /**
     * Ident of the entries wanted, with its NUL; empty: all.
     */
    uint8_t user[1];
} pmxcfs_get_cluster_log_request;

/**
 * GET_GUEST_CONFIG_PROPERTY.
 */
typedef struct pmxcfs_get_guest_config_property_request {
    struct pmxcfs_request_header header;
    /**
     * 0: all guests.
     */
    uint32_t vmid;
    /**
     * Name of the property, with its NUL.
     */
    uint8_t property[1];
} pmxcfs_get_guest_config_property_request;

/**
 * VERIFY_TOKEN.
 */
typedef struct pmxcfs_verify_token_request {
    struct pmxcfs_request_header header;
    /**
     * `<userid>!<token id> <secret>`, with its NUL.
     */
    uint8_t token[1];
} pmxcfs_verify_token_request;

/**
 * GET_GUEST_CONFIG_PROPERTIES.
 */
typedef struct pmxcfs_get_guest_config_properties_request {
    struct pmxcfs_request_header header;
    /**
     * 0: all guests.
     */
    uint32_t vmid;
    /**
     * Number of names, at least 1.
     */
    uint8_t count;
    /**
     * Names of properties, each with its NUL.
     */
    uint8_t names[1];
} pmxcfs_get_guest_config_properties_request;

/**
 * Response of every operation; without data for SET_STATUS, LOG_CLUSTER_MSG and VERIFY_TOKEN.
 */
typedef struct pmxcfs_response {
    struct pmxcfs_response_header header;
    /**
     * 0 to 1048552 bytes.
     */
    uint8_t data[1];
} pmxcfs_response;

/**
 * GET_FS_VERSION, GET_CLUSTER_INFO, GET_GUEST_LIST and GET_RRD_DUMP: no payload.
 */
typedef struct pmxcfs_request_header pmxcfs_get_fs_version_request;

/**
 * See there.
 */
typedef struct pmxcfs_request_header pmxcfs_get_cluster_info_request;

/**
 * See there.
 */
typedef struct pmxcfs_request_header pmxcfs_get_guest_list_request;

/**
 * See there.
 */
typedef struct pmxcfs_request_header pmxcfs_get_rrd_dump_request;

/**
 * Every message begins with it.
 */
typedef struct pmxcfs_cpg_header {
    /**
     * PMXCFS_CPG_NORMAL to PMXCFS_CPG_VERIFY.
     */
    uint16_t message_type;
    /**
     * Number of an application message; 0 otherwise.
     */
    uint16_t subtype;
    uint32_t protocol_version;
    /**
     * Clock of the sender in seconds; what every node applies for a normal message.
     */
    uint32_t time;
    /**
     * 0.
     */
    uint32_t reserved;
} pmxcfs_cpg_header;

/**
 * A normal message; its payload follows.
 */
typedef struct pmxcfs_cpg_normal_header {
    struct pmxcfs_cpg_header base;
    /**
     * Number of this normal message of its sender, from 1.
     */
    uint64_t count;
} pmxcfs_cpg_normal_header;

/**
 * Names one synchronisation.
 */
typedef struct pmxcfs_cpg_epoch {
    uint32_t counter;
    uint32_t time;
    uint32_t nodeid;
    uint32_t pid;
} pmxcfs_cpg_epoch;

/**
 * Any other message; its payload follows.
 */
typedef struct pmxcfs_cpg_state_header {
    struct pmxcfs_cpg_header base;
    struct pmxcfs_cpg_epoch epoch;
} pmxcfs_cpg_state_header;

/**
 * PMXCFS_CPG_VERIFY_REQUEST.
 */
typedef struct pmxcfs_cpg_verify_request {
    struct pmxcfs_cpg_state_header header;
    uint64_t checksum_id;
} pmxcfs_cpg_verify_request;

/**
 * PMXCFS_CPG_VERIFY.
 */
typedef struct pmxcfs_cpg_verify {
    struct pmxcfs_cpg_state_header header;
    uint64_t checksum_id;
    /**
     * SHA-256.
     */
    uint8_t checksum[32];
} pmxcfs_cpg_verify;

/**
 * Payload of the messages PMXCFS_DCDB_WRITE to PMXCFS_DCDB_MTIME.
 */
typedef struct pmxcfs_dcdb_operation {
    /**
     * Bytes of data behind the paths.
     */
    uint32_t size;
    /**
     * Offset in the file; the time of PMXCFS_DCDB_MTIME.
     */
    uint32_t offset;
    /**
     * Bytes of the path, NUL included.
     */
    uint32_t path_len;
    /**
     * Bytes of the new path, NUL included, or 0.
     */
    uint32_t to_len;
    /**
     * Not 0: truncate.
     */
    uint32_t flags;
} pmxcfs_dcdb_operation;

/**
 * Payload of PMXCFS_DCDB_UNLOCK_REQUEST and PMXCFS_DCDB_UNLOCK.
 */
typedef struct pmxcfs_dcdb_unlock {
    /**
     * SHA-256 of the directory's entry.
     */
    uint8_t checksum[32];
    /**
     * Path with its NUL.
     */
    uint8_t path[1];
} pmxcfs_dcdb_unlock;

/**
 * Payload of PMXCFS_KVSTORE_UPDATE.
 */
typedef struct pmxcfs_kvstore_update {
    /**
     * Key; what follows its NUL means nothing.
     */
    uint8_t key[256];
    /**
     * 0 or more bytes.
     */
    uint8_t value[1];
} pmxcfs_kvstore_update;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Makes a client; does not connect yet. `service` NULL means PMXCFS_SERVICE. NULL for a name that
 * is empty, longer than 64 bytes or not made of letters, digits, `_`, `-` and `.`.
 */
struct pmxcfs_client *pmxcfs_client_new(const char *service);

/**
 * Ends the connection and frees the client; NULL is ignored. No other thread may use it.
 */
void pmxcfs_client_free(struct pmxcfs_client *client);

/**
 * Sets the longest time of every later call in milliseconds, connecting included; negative, which
 * is the default: none. When it is over the call returns -ETIMEDOUT and the connection is closed.
 */
int pmxcfs_client_set_timeout(struct pmxcfs_client *client, int timeout_ms);

/**
 * Connects now, if it is not connected. -ECONNREFUSED: nobody listens and there is no restart
 * flag, or it was waited for long enough; -EACCES or -EPERM: refused, or not root's service.
 */
int pmxcfs_client_connect(struct pmxcfs_client *client);

/**
 * Ends the connection; the next call makes another one.
 */
void pmxcfs_client_disconnect(struct pmxcfs_client *client);

/**
 * Sends a request of `size` bytes of payload and waits for its answer; `answer` may be NULL.
 *
 * A connection that breaks is made anew and the request sent again, once; while the restart flag
 * is there, as often as it takes within 10 seconds. A request may so be carried out twice.
 */
int pmxcfs_call(struct pmxcfs_client *client,
                int32_t op,
                const void *data,
                size_t size,
                struct pmxcfs_answer *answer);

/**
 * As pmxcfs_call, for programs that have to look after signals while they wait. The payload goes
 * where `place` says, which is not called for an empty one. Returns the size of the payload.
 *
 * -EINTR means: not done, because a signal came or nothing for at most 50 ms. Call it again with
 * the same arguments and `resume` 1 to go on, or with `resume` 0 for another request; the first
 * one is then given up, and the connection closed if it was sent.
 */
int64_t pmxcfs_call_step(struct pmxcfs_client *client,
                         int resume,
                         int32_t op,
                         const void *data,
                         size_t size,
                         pmxcfs_place place,
                         void *arg);

/**
 * Sends a request without waiting for its answer, which pmxcfs_receive gets; answers come in the
 * order of the requests. Several requests may be on their way, but the answers have to be
 * received before pmxcfs_call or a helper is used (-EBUSY). -EAGAIN: there is no space for more.
 * -ENOTCONN: the connection broke, outstanding answers are lost.
 */
int pmxcfs_send(struct pmxcfs_client *client, int32_t op, const void *data, size_t size);

/**
 * Waits at most `timeout_ms` milliseconds (negative: without limit) for the answer of the oldest
 * request sent by pmxcfs_send. `op`, if not NULL, is set to its operation; with -ETIMEDOUT, after
 * which it can be called again, and other errors of the connection to 0. -EINVAL: there is none.
 */
int pmxcfs_receive(struct pmxcfs_client *client,
                   int timeout_ms,
                   int32_t *op,
                   struct pmxcfs_answer *answer);

/**
 * Frees the memory of an answer and makes it empty; NULL is ignored.
 */
void pmxcfs_answer_free(struct pmxcfs_answer *answer);

/**
 * GET_FS_VERSION: versions of files, guest list, cluster and status values, JSON.
 */
int pmxcfs_get_fs_version(struct pmxcfs_client *client, struct pmxcfs_answer *answer);

/**
 * GET_CLUSTER_INFO: name and members of the cluster, JSON.
 */
int pmxcfs_get_cluster_info(struct pmxcfs_client *client, struct pmxcfs_answer *answer);

/**
 * GET_GUEST_LIST: guests of all nodes, JSON.
 */
int pmxcfs_get_guest_list(struct pmxcfs_client *client, struct pmxcfs_answer *answer);

/**
 * SET_STATUS: sets a status value of this node, or removes it if `size` is 0. Root only (-EPERM).
 * Keys have at most 255 bytes (-ENAMETOOLONG), values 32768 (-EFBIG).
 */
int pmxcfs_set_status(struct pmxcfs_client *client,
                      const char *key,
                      const void *value,
                      size_t size);

/**
 * GET_STATUS: a status value of a node; `nodename` NULL or empty means this one. -ENOENT if there
 * is no such node or value.
 */
int pmxcfs_get_status(struct pmxcfs_client *client,
                      const char *key,
                      const char *nodename,
                      struct pmxcfs_answer *answer);

/**
 * GET_CONFIG: content of a file, `path` is below /etc/pve. -ENOENT if it is no file of the
 * database, -EPERM if it is private and the caller not root, -ENOBUFS if it is larger than
 * PMXCFS_MAX_RESPONSE_PAYLOAD.
 */
int pmxcfs_get_config(struct pmxcfs_client *client, const char *path, struct pmxcfs_answer *answer);

/**
 * LOG_CLUSTER_MSG: writes an entry to the cluster log. `priority` is that of syslog, 0 to 7;
 * `ident` (a user) and `tag` (a program) have at most 254 bytes. Root only (-EPERM).
 */
int pmxcfs_log_cluster_msg(struct pmxcfs_client *client,
                           uint8_t priority,
                           const char *ident,
                           const char *tag,
                           const char *message);

/**
 * GET_CLUSTER_LOG: the newest `max_entries` (0 means 50) entries of the cluster log, JSON; `user`
 * NULL or empty means those of all users.
 */
int pmxcfs_get_cluster_log(struct pmxcfs_client *client,
                           uint32_t max_entries,
                           const char *user,
                           struct pmxcfs_answer *answer);

/**
 * GET_RRD_DUMP: the newest round-robin data, a line `key:data` for each key.
 */
int pmxcfs_get_rrd_dump(struct pmxcfs_client *client, struct pmxcfs_answer *answer);

/**
 * GET_GUEST_CONFIG_PROPERTY: a property of one guest, or of all with `vmid` 0, JSON.
 */
int pmxcfs_get_guest_config_property(struct pmxcfs_client *client,
                                     uint32_t vmid,
                                     const char *property,
                                     struct pmxcfs_answer *answer);

/**
 * VERIFY_TOKEN: 0 if the token `userid` (`user@realm!name`) has this `secret`, -ENOENT if not.
 */
int pmxcfs_verify_token(struct pmxcfs_client *client, const char *userid, const char *secret);

/**
 * GET_GUEST_CONFIG_PROPERTIES: `count` properties (1 to 255) of one guest, or of all with `vmid`
 * 0, JSON.
 */
int pmxcfs_get_guest_config_properties(struct pmxcfs_client *client,
                                       uint32_t vmid,
                                       const char *const *properties,
                                       size_t count,
                                       struct pmxcfs_answer *answer);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PMXCFS_H */
