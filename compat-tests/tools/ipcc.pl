#!/usr/bin/perl -T
# Uses PVE::IPCC against a running daemon.
#
#   ipcc.pl rules            what it returns, and $!
#   ipcc.pl fork N           N children use the module of their parent
#   ipcc.pl poll MS          one call after the other: prints "calls N failed F longest MS"
#   ipcc.pl signals          the daemon is stopped at "stop" and goes on at "go" (lines of this script)
#   ipcc.pl bench R N OP BYTES  R rounds of N calls, by turns with QbIPCC: prints the medians in us
#
# Ends with 0, or with a line about what was wrong.
use strict;
use warnings;

use IO::Handle;
use POSIX qw(:errno_h);
use Socket;
use Time::HiRes qw(time sleep);

use PVE::IPCC;
use PVE::Cluster::IPCConst;

$| = 1;

sub check {
    my ($what, $good) = @_;
    return if $good;
    my (undef, undef, $line) = caller;
    print "line $line: $what\n";
    POSIX::_exit(1);
}

# The answer, and $! as it was left.
sub ask {
    $! = 77;
    my $answer = PVE::IPCC::ipcc_send_rec(@_);
    return ($answer, $! + 0);
}

sub is_error {
    my ($errno, @request) = @_;
    my ($answer, $seen) = ask(@request);
    my (undef, undef, $line) = caller;
    check("of line $line: answer", !defined($answer));
    check("of line $line: errno $seen instead of $errno", $seen == $errno);
}

sub is_answer {
    my ($text, @request) = @_;
    my ($answer, $errno) = ask(@request);
    my (undef, undef, $line) = caller;
    check("of line $line: no answer, errno $errno", defined($answer));
    check("of line $line: errno $errno", $errno == 0);
    check("of line $line: '$answer'", ref($text) ? $answer =~ $text : $answer eq $text);
    check("of line $line: UTF-8 flag", !utf8::is_utf8($answer));
    return $answer;
}

sub status_key { return pack('Z256', shift); }

sub rules {
    is_answer(qr/^\{\n"starttime": \d+,\n/, CFS_IPC_GET_FS_VERSION);
    is_answer(qr/"nodename": "node1"/, CFS_IPC_GET_CLUSTER_INFO);
    is_answer(qr/"100": \{ "node": "node1"/, CFS_IPC_GET_GUEST_LIST);
    is_answer("hello abi\n", CFS_IPC_GET_CONFIG, "abi.cfg\0");
    is_answer('x' x 1048552, CFS_IPC_GET_CONFIG, "large.cfg\0");
    # success without data is undef, too
    is_error(0, CFS_IPC_GET_CONFIG, "empty.cfg\0");
    is_error(ENOENT, CFS_IPC_GET_CONFIG, "absent.cfg\0");
    is_error(0, CFS_IPC_SET_STATUS, status_key('kv/perl') . "\0\xff \xe4\0");
    is_answer("\0\xff \xe4\0", CFS_IPC_GET_STATUS, status_key('kv/perl') . status_key(''));
    is_error(0, CFS_IPC_SET_STATUS, status_key('kv/perl'));
    is_error(ENOENT, CFS_IPC_GET_STATUS, status_key('kv/perl') . status_key('node1'));
    is_error(EFBIG, CFS_IPC_SET_STATUS, status_key('kv/perl') . 'x' x 32769);
    is_error(EINVAL, CFS_IPC_GET_STATUS, status_key('kv/perl'));
    is_error(0, CFS_IPC_VERIFY_TOKEN, "root\@pam!abi 0123-4567\0");
    is_error(ENOENT, CFS_IPC_VERIFY_TOKEN, "root\@pam!abi wrong\0");
    is_error(ECHRNG(), 9);
    is_error(EMSGSIZE, CFS_IPC_GET_CONFIG, 'x' x 1048576);
    # data counts only as a string
    is_error(EINVAL, CFS_IPC_GET_CONFIG, undef);
    is_error(EINVAL, CFS_IPC_GET_CONFIG, ["abi.cfg\0"]);
    is_error(EINVAL, CFS_IPC_GET_CONFIG, 17);
    # characters above 255: the bytes of their UTF-8
    is_error(0, CFS_IPC_SET_STATUS, status_key('kv/wide') . "\x{20ac}");
    is_answer("\xe2\x82\xac", CFS_IPC_GET_STATUS, status_key('kv/wide') . status_key(''));
    check('version', $PVE::IPCC::VERSION eq '1.0');
    check('nothing exported', !defined(&main::ipcc_send_rec) );
    descriptors();
}

sub ECHRNG { return 44; }

# A pipe goes through a socket.
sub descriptors {
    socketpair(my $left, my $right, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die "socketpair: $!";
    pipe(my $reader, my $writer) or die "pipe: $!";
    check('sendfd with data', PVE::IPCC::sendfd(fileno($left), fileno($writer), 'abc') == 3);
    my $data;
    check('data arrives', sysread($right, $data, 10) == 3 && $data eq 'abc');
    check('no such socket', PVE::IPCC::sendfd(1000, fileno($writer), 'x') == -1 && $! == EBADF);
    check('no such fd', PVE::IPCC::sendfd(fileno($left), 1000, 'x') == -1 && $! == EBADF);
    # and a descriptor without data, where that is possible
    socketpair($left, $right, AF_UNIX, SOCK_DGRAM, PF_UNSPEC) or die "socketpair: $!";
    check('sendfd alone', PVE::IPCC::sendfd(fileno($left), fileno($writer)) == 0);
}

sub forks {
    my ($count) = @_;
    my $work = sub {
        my ($number) = @_;
        for my $i (1 .. 10) {
            is_error(0, CFS_IPC_SET_STATUS, status_key("kv/child$number") . "$i of $number");
            is_answer("$i of $number", CFS_IPC_GET_STATUS, status_key("kv/child$number") . status_key(''));
        }
        is_error(0, CFS_IPC_SET_STATUS, status_key("kv/child$number"));
    };
    $work->(0);
    for my $number (1 .. $count) {
        my $pid = fork() // die "fork: $!";
        if (!$pid) {
            $work->($number);
            exit(0);
        }
        is_answer(qr/starttime/, CFS_IPC_GET_FS_VERSION) if $number % 10 == 0;
    }
    my $bad = 0;
    while (wait() > 0) {
        $bad++ if $?;
    }
    check("$bad children failed", !$bad);
    $work->(0);
}

sub poll {
    my ($ms) = @_;
    my ($begin, $calls, $failed, $longest) = (time, 0, 0, 0);
    while ((my $start = time) - $begin < $ms / 1000) {
        my ($answer, $errno) = ask(CFS_IPC_GET_FS_VERSION);
        my $took = 1000 * (time - $start);
        $calls++;
        $longest = $took if $took > $longest;
        if (!defined($answer)) {
            $failed++;
            print STDERR "call $calls: errno $errno after $took ms\n";
        }
        sleep(0.005);
    }
    printf("calls %d failed %d longest %.1f\n", $calls, $failed, $longest);
}

sub tell_test {
    my ($word) = @_;
    print "$word\n";
    my $done = <STDIN>;
}

# Handlers run while a daemon does not answer, may die, and may ask themselves.
sub signals {
    is_answer(qr/starttime/, CFS_IPC_GET_FS_VERSION);
    my $seen = 0;
    tell_test('stop');
    my $start = time;
    eval {
        local $SIG{ALRM} = sub { die "got timeout\n" };
        Time::HiRes::alarm(0.3);
        ask(CFS_IPC_GET_FS_VERSION);
        check('an answer of a stopped daemon', 0);
    };
    my $took = time - $start;
    check("not interrupted: $@", $@ eq "got timeout\n");
    check("after $took s", $took >= 0.29 && $took < 3);
    tell_test('go');
    # not the answer to the request before
    is_answer("hello abi\n", CFS_IPC_GET_CONFIG, "abi.cfg\0");

    tell_test('stop');
    {
        # the daemon goes on at the second alarm
        local $SIG{ALRM} = sub {
            $seen++;
            Time::HiRes::alarm(0.2) if $seen < 2;
            tell_test('go') if $seen == 2;
            is_answer("hello abi\n", CFS_IPC_GET_CONFIG, "abi.cfg\0") if $seen == 2;
        };
        Time::HiRes::alarm(0.2);
        is_answer(qr/starttime/, CFS_IPC_GET_FS_VERSION);
    }
    check("$seen signals", $seen == 2);
    is_answer("hello abi\n", CFS_IPC_GET_CONFIG, "abi.cfg\0");
}

sub median {
    my @sorted = sort { $a <=> $b } @_;
    return $sorted[@sorted / 2];
}

sub bench {
    my ($rounds, $count, $op, $data) = @_;
    require QbIPCC;
    my @data = $data eq '' ? () : ("$data\0");
    my (@ours, @theirs);
    my $ours = sub { PVE::IPCC::ipcc_send_rec($op, @data) for 1 .. $count };
    my $theirs = sub { QbIPCC::request($op, @data) for 1 .. $count };
    check('other answers', PVE::IPCC::ipcc_send_rec($op, @data) eq QbIPCC::request($op, @data));
    for my $round (0 .. $rounds) {
        for my $side ($round % 2 ? (0, 1) : (1, 0)) {
            my $start = time;
            $side ? $ours->() : $theirs->();
            my $took = (time - $start) / $count * 1e6;
            next if !$round; # warm up
            push @{ $side ? \@ours : \@theirs }, $took;
        }
    }
    printf("%.2f %.2f\n", median(@ours), median(@theirs));
}

my ($what, @args) = @ARGV;
my %known = (rules => \&rules, fork => \&forks, poll => \&poll, signals => \&signals, bench => \&bench);
my $sub = $known{ $what // '' } or die "usage: see the head of ipcc.pl\n";
@args = map { /^(.*)$/ ? $1 : '' } @args;
$sub->(@args);
exit(0);
