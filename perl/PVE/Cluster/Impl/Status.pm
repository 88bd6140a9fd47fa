package PVE::Cluster::Impl::Status;

# Values of nodes, task lists, round-robin data, cluster log, tokens, properties of guests.

use strict;
use warnings;

use Errno qw(ENOENT);
use JSON ();
use List::Util qw(min);
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);

use PVE::Cluster::Impl::IPC;
use PVE::Cluster::Impl::State;
use PVE::Cluster::IPCConst;
use PVE::SafeSyslog;

# A value with its NUL that is larger is refused by the daemon.
my $VALUE_LIMIT = 32768;

# Seconds for which a dump of the round-robin data is used again.
my $DUMP_LIFE = 2;

# emerg is 0 and is not translated (see log_msg in PVE::Cluster).
my %PRIORITY = (
    alert => 1,
    crit => 2,
    critical => 2,
    err => 3,
    error => 3,
    warn => 4,
    warning => 4,
    notice => 5,
    info => 6,
    debug => 7,
);

# node -> { version, text }: task lists as they came.
my $tasklists = {};

# The last dump: { time, data }.
my $dump;

# Sets (or, without a value, removes) a value of this node. Errors are only warned about: it is
# sent again soon, and nothing may stop for it.
sub set_status {
    my ($name, $value) = @_;

    my $payload = PVE::Cluster::Impl::IPC::name256($name);
    $payload .= "$value\0" if defined($value);
    eval { PVE::Cluster::Impl::IPC::request(CFS_IPC_SET_STATUS, $payload); 1 } or warn $@;
    return;
}

# A value of a node, up to its first NUL; undef when there is none or nobody answers.
sub get_status {
    my ($name, $node) = @_;

    my $field = \&PVE::Cluster::Impl::IPC::name256;
    my $value = PVE::Cluster::Impl::IPC::ask(CFS_IPC_GET_STATUS, $field->($name) . $field->($node));
    return undef if !defined($value);
    $value =~ s/\0.*//s;
    return $value;
}

sub broadcast_node_kv {
    my ($key, $data) = @_;

    if (defined($data)) {
        die "cannot send a reference\n" if ref($data);
        $data = PVE::Cluster::Impl::IPC::bytes($data);
        die "data for '$key' too big\n" if length($data) >= $VALUE_LIMIT;
    }
    return set_status("kv/$key", $data);
}

sub get_node_kv {
    my ($key, $node) = @_;

    my $values = {};
    for my $name (defined($node) ? $node : @{ PVE::Cluster::get_nodelist() }) {
        my $value = get_status("kv/$key", $name);
        $values->{$name} = $value if defined($value);
    }
    return $values;
}

sub broadcast_tasklist {
    my ($tasks) = @_;

    my @texts;
    my $length = 2; # the brackets
    for my $task (@$tasks) {
        my $text = JSON->new->utf8->allow_nonref->encode($task);
        $length += length($text) + (@texts ? 1 : 0);
        last if $length >= $VALUE_LIMIT;
        push @texts, $text;
    }
    return set_status('tasklist', '[' . join(',', @texts) . ']');
}

# The task list of a node, as text.
sub tasklist_text {
    my ($node) = @_;

    my $kvstore = PVE::Cluster::Impl::State::versions()->{kvstore} // {};
    my $version = $kvstore->{$node} ? $kvstore->{$node}->{tasklist} : undef;
    my $known = $tasklists->{$node};
    # A version of 0 is that of a value just created, also when it is created again.
    return $known->{text} if $known && $version && $known->{version} == $version;

    my $text = get_status('tasklist', $node);
    delete $tasklists->{$node};
    $tasklists->{$node} = { version => $version, text => $text } if $version && defined($text);
    return $text;
}

sub get_tasklist {
    my ($node) = @_;

    my @tasks;
    for my $name (defined($node) ? $node : @{ PVE::Cluster::get_nodelist() }) {
        my $text = tasklist_text($name);
        next if !defined($text) || $text eq '';
        my $list = eval { JSON::decode_json($text) };
        warn "task list of node '$name': $@" if !$list;
        push @tasks, @$list if ref($list) eq 'ARRAY';
    }
    return \@tasks;
}

sub broadcast_rrd {
    my ($id, $data) = @_;

    return set_status("rrd/$id", PVE::Cluster::Impl::IPC::bytes($data));
}

# key -> columns of the text of a dump.
sub parse_dump {
    my ($text) = @_;

    my $data = {};
    $text =~ s/\0\z//;
    for my $line (split(/\n/, $text)) {
        my ($key, @columns) = split(/:/, $line);
        next if @columns < 2;
        $data->{$key} = [map { $_ eq 'U' ? undef : $_ } @columns];
    }
    return $data;
}

sub rrd_dump {
    my $now = clock_gettime(CLOCK_MONOTONIC);
    return $dump->{data} if $dump && $now - $dump->{time} < $DUMP_LIFE;

    my $text = eval { PVE::Cluster::Impl::IPC::request(CFS_IPC_GET_RRD_DUMP) // '' };
    if (!defined($text)) {
        warn $@;
        return {};
    }
    $dump = { time => $now, data => parse_dump($text) };
    return $dump->{data};
}

sub get_config {
    my ($path) = @_;

    my $payload = PVE::Cluster::Impl::IPC::c_string($path);
    my $content = PVE::Cluster::Impl::IPC::ask(CFS_IPC_GET_CONFIG, $payload);
    return $content if defined($content);
    return '' if $! == 0;
    return undef if $! == ENOENT;
    die "$!\n";
}

sub get_cluster_log {
    my ($user, $max) = @_;

    my $payload = pack('V4', $max // 0, 0, 0, 0) . PVE::Cluster::Impl::IPC::c_string($user);
    return PVE::Cluster::Impl::IPC::request(CFS_IPC_GET_CLUSTER_LOG, $payload);
}

# Characters outside of ASCII as \uXXXX, those beyond 16 bits as two of them, as JSON wants it.
# Bytes that are UTF-8 are taken as that.
sub ascii {
    my ($text) = @_;

    $text = '' if !defined($text);
    utf8::decode($text) if !utf8::is_utf8($text);
    my $escape = sub {
        my ($code) = @_;
        return sprintf('\\u%04x', $code) if $code < 0x10000;
        $code -= 0x10000;
        return sprintf('\\u%04x\\u%04x', 0xd800 + ($code >> 10), 0xdc00 + ($code & 0x3ff));
    };
    $text =~ s/([^\x00-\x7f])/$escape->(ord($1))/ge;
    utf8::downgrade($text);
    return $text;
}

# A C string whose length, with its NUL, fits into one byte.
sub short_c_string {
    my ($text) = @_;
    my $string = PVE::Cluster::Impl::IPC::c_string($text);
    return length($string) <= 255 ? $string : substr($string, 0, 254) . "\0";
}

sub log_msg {
    my ($priority, $ident, $message) = @_;

    $priority = '' if !defined($priority);
    $priority = $PRIORITY{$priority} // $priority;
    die 'need numeric log priority' if $priority !~ m/^\d+\z/;

    ($ident, $message) = (ascii($ident), ascii($message));
    $message = 'empty message' if $message eq '';
    syslog($priority, '%s', $ident eq '' ? $message : "<$ident> $message");

    my ($user, $tag) = map { short_c_string($_) } ($ident, PVE::SafeSyslog::tag());
    my $text = PVE::Cluster::Impl::IPC::c_string($message);
    my $payload = pack('C3', min($priority, 255), length($user), length($tag)) . "$user$tag$text";
    eval { PVE::Cluster::Impl::IPC::request(CFS_IPC_LOG_CLUSTER_MSG, $payload); 1 }
        or syslog('err', '%s', "writing cluster log failed: $@");
    return;
}

sub verify_token {
    my ($userid, $token) = @_;

    # Packed as it is: a NUL inside is for the daemon to refuse, not to be cut off here.
    my $text = PVE::Cluster::Impl::IPC::bytes("$userid $token");
    my $answer = PVE::Cluster::Impl::IPC::ask(CFS_IPC_VERIFY_TOKEN, "$text\0");
    return 1 if defined($answer) || $! == 0;
    return 0 if $! == ENOENT;
    die "$!\n";
}

sub get_guest_config_property {
    my ($property, $vmid) = @_;

    my $payload = pack('V', $vmid // 0) . PVE::Cluster::Impl::IPC::c_string($property);
    return PVE::Cluster::Impl::IPC::request_json(CFS_IPC_GET_GUEST_CONFIG_PROPERTY, $payload);
}

sub get_guest_config_properties {
    my ($properties, $vmid) = @_;

    die 'only up to 255 properties supported' if @$properties > 255;
    my $names = join('', map { PVE::Cluster::Impl::IPC::c_string($_) } @$properties);
    my $payload = pack('VC', $vmid // 0, scalar(@$properties)) . $names;
    return PVE::Cluster::Impl::IPC::request_json(CFS_IPC_GET_GUEST_CONFIG_PROPERTIES, $payload);
}

1;
