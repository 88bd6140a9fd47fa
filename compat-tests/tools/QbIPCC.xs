/* QbIPCC: the least that libqb needs for a request from Perl. */
#define PERL_NO_GET_CONTEXT
#include "EXTERN.h"
#include "perl.h"
#include "XSUB.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#include <qb/qbdefs.h>
#include <qb/qbipcc.h>

#define LARGEST 1048576

static qb_ipcc_connection_t *connection;
static char response[LARGEST];

MODULE = QbIPCC  PACKAGE = QbIPCC

PROTOTYPES: DISABLE

SV *
request(op, data = NULL)
    I32 op
    SV *data
  PREINIT:
    struct qb_ipc_request_header header;
    struct qb_ipc_response_header *answer = (struct qb_ipc_response_header *)response;
    struct iovec parts[2];
    STRLEN size = 0;
    ssize_t received;
  CODE:
    if (connection == NULL && (connection = qb_ipcc_connect("pve2", LARGEST)) == NULL)
        croak("QbIPCC: %s", strerror(errno));
    memset(&header, 0, sizeof(header));
    memset(parts, 0, sizeof(parts));
    if (data != NULL && SvPOK(data)) {
        parts[1].iov_base = SvPV(data, size);
        parts[1].iov_len = size;
    }
    header.id = op;
    header.size = sizeof(header) + size;
    parts[0].iov_base = &header;
    parts[0].iov_len = sizeof(header);
    received = qb_ipcc_sendv_recv(connection, parts, size > 0 ? 2 : 1, response, LARGEST, -1);
    if (received < (ssize_t)sizeof(*answer))
        croak("QbIPCC: no answer (%zd)", received);
    errno = answer->error < 0 ? -answer->error : 0;
    RETVAL = errno == 0 && received > (ssize_t)sizeof(*answer) ?
        newSVpvn(response + sizeof(*answer), received - sizeof(*answer)) : &PL_sv_undef;
  OUTPUT:
    RETVAL
