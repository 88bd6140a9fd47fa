/* PVE::IPCC: requests to pmxcfs by way of libpmxcfs. */
#define PERL_NO_GET_CONTEXT
#include "EXTERN.h"
#include "perl.h"
#include "XSUB.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

#include <pmxcfs.h>

/* One client for the process; a child of a fork gets a connection of its own (see pmxcfs.h). */
static pmxcfs_client *main_client;

/* A request is on its way: a signal handler that sends one, too, needs another client. */
static I32 is_busy;

struct answer {
#ifdef MULTIPLICITY
    PerlInterpreter *perl;
#endif
    SV *sv;
};

/* Memory for the answer is that of the string it becomes. */
static void *place(size_t size, void *arg)
{
    struct answer *answer = arg;
#ifdef MULTIPLICITY
    dTHXa(answer->perl);
#endif
    answer->sv = newSV(size + 1);
    SvPOK_only(answer->sv);
    SvCUR_set(answer->sv, size);
    SvPVX(answer->sv)[size] = '\0';
    return SvPVX(answer->sv);
}

static void free_client(pTHX_ void *client)
{
    PERL_UNUSED_CONTEXT;
    pmxcfs_client_free(client);
}

static int64_t send_rec(pTHX_ pmxcfs_client *client, I32 op, const char *data, STRLEN size,
                        struct answer *answer)
{
    int resume = 0;
    int64_t result;
    while ((result = pmxcfs_call_step(client, resume, op, data, size, place, answer)) == -EINTR) {
        /* Handlers run here, and may die. */
        PERL_ASYNC_CHECK();
        resume = 1;
    }
    return result;
}

MODULE = PVE::IPCC  PACKAGE = PVE::IPCC

PROTOTYPES: DISABLE

SV *
ipcc_send_rec(msgid, data = NULL)
    I32 msgid
    SV *data
  PREINIT:
    pmxcfs_client *client;
    struct answer answer;
    const char *bytes = NULL;
    STRLEN size = 0;
    int64_t result;
  CODE:
    if (data != NULL && SvPOK(data)) {
        /* A copy that stays as it is while signal handlers run. */
        SV *copy = sv_2mortal(newSVpvn(SvPVX_const(data), SvCUR(data)));
        bytes = SvPV_const(copy, size);
    }
#ifdef MULTIPLICITY
    answer.perl = aTHX;
#endif
    answer.sv = NULL;
    ENTER;
    if (is_busy) {
        client = pmxcfs_client_new(NULL);
        SAVEDESTRUCTOR_X(free_client, client);
    } else {
        if (main_client == NULL)
            main_client = pmxcfs_client_new(NULL);
        client = main_client;
        SAVEI32(is_busy);
        is_busy = 1;
    }
    result = send_rec(aTHX_ client, msgid, bytes, size, &answer);
    LEAVE;
    RETVAL = result > 0 && answer.sv != NULL ? answer.sv : &PL_sv_undef;
    errno = result < 0 ? (int)-result : 0;
  OUTPUT:
    RETVAL

int
sendfd(sock, fd, data = NULL)
    int sock
    int fd
    SV *data
  PREINIT:
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message;
    struct iovec part;
    const struct timespec pause = { 0, 1000000 };
    STRLEN size = 0;
    ssize_t result;
  CODE:
    memset(&message, 0, sizeof(message));
    memset(&control, 0, sizeof(control));
    if (data != NULL && SvOK(data)) {
        part.iov_base = SvPV(data, size);
        part.iov_len = size;
        message.msg_iov = &part;
        message.msg_iovlen = 1;
    }
    message.msg_control = &control;
    message.msg_controllen = sizeof(control);
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
    while ((result = sendmsg(sock, &message, 0)) < 0 && (errno == EINTR || errno == EAGAIN)) {
        if (errno == EAGAIN)
            nanosleep(&pause, NULL);
        PERL_ASYNC_CHECK();
    }
    RETVAL = (int)result;
  OUTPUT:
    RETVAL
