package PVE::IPCC;

# Requests to pmxcfs, made by libpmxcfs.
#
# ipcc_send_rec($msgid [, $data]): sends a request and waits for the answer: a byte string, or undef
# if there is no data ($! is 0 then) or the request failed ($! says why).
#
# sendfd($sock, $fd [, $data]): hands a file descriptor to the process at the other end of a UNIX
# socket.

use strict;
use warnings;

our $VERSION = '1.0';

require XSLoader;
XSLoader::load('PVE::IPCC', $VERSION);

1;
