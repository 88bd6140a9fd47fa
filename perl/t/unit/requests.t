use strict;
use warnings;
use utf8;

use Errno qw(EINVAL ENOENT);
use JSON ();
use Test::More;

use Caught qw(died warned);
use FakeIPCC;
use PVE::Cluster;
use PVE::SafeSyslog;

my $refused = "failed: Invalid argument\n";
my $field = sub { my ($name) = @_; return $name . "\0" x (256 - length($name)) };

# The payload of the only request of the code.
sub payload {
    my ($code) = @_;
    FakeIPCC::taken();
    $code->();
    my @requests = FakeIPCC::taken();
    is(scalar(@requests), 1, 'one request');
    return $requests[0]->[1];
}

subtest 'set a value (4)' => sub {
    FakeIPCC::answer(4, undef, 0);
    is(payload(sub { PVE::Cluster::broadcast_node_kv('k', 'v') }), $field->('kv/k') . "v\0", 'set');
    is(payload(sub { PVE::Cluster::broadcast_node_kv('k', '') }), $field->('kv/k') . "\0", 'empty');
    is(payload(sub { PVE::Cluster::broadcast_node_kv('k') }), $field->('kv/k'), 'remove');
    is(
        payload(sub { PVE::Cluster::broadcast_node_kv('k', '€ä') }),
        $field->('kv/k') . "\xe2\x82\xac\xc3\xa4\0",
        'text goes out as UTF-8',
    );
    my $long = 'k' x 300;
    is(
        payload(sub { PVE::Cluster::broadcast_node_kv($long, 'v') }),
        substr("kv/$long", 0, 255) . "\0v\0",
        'a name is cut to 255 bytes',
    );
    is(died(sub { PVE::Cluster::broadcast_node_kv('k', [1]) }), "cannot send a reference\n", 'ref');
    is(length(payload(sub { PVE::Cluster::broadcast_node_kv('k', 'x' x 32767) })), 256 + 32768, 'max');
    my $big = sub { PVE::Cluster::broadcast_node_kv('big', 'x' x 32768) };
    is(died($big), "data for 'big' too big\n", 'one more');
    $big = sub { PVE::Cluster::broadcast_node_kv('big', '€' x 10923) };
    is(died($big), "data for 'big' too big\n", 'bytes count, not characters');
    is(payload(sub { PVE::Cluster::broadcast_rrd('a/b', 'U:1') }), $field->('rrd/a/b') . "U:1\0", 'rrd');

    FakeIPCC::answer(4, undef, EINVAL);
    for my $code (
        sub { PVE::Cluster::broadcast_node_kv('k', 'v') },
        sub { PVE::Cluster::broadcast_node_kv('k') },
        sub { PVE::Cluster::broadcast_rrd('k', '1') },
        sub { PVE::Cluster::broadcast_tasklist([]) },
    ) {
        is(warned($code), "ipcc_send_rec[4] $refused", 'errors only warn');
    }
};

subtest 'task list' => sub {
    FakeIPCC::answer(4, undef, 0);
    my $sent = payload(sub { PVE::Cluster::broadcast_tasklist([{ a => 1 }, { b => 'ä' }]) });
    my $json = substr($sent, 256);
    is(substr($sent, 0, 256), $field->('tasklist'), 'key');
    is($json, qq([{"a":1},{"b":"\xc3\xa4"}]\0), 'JSON and NUL');
    is(substr(payload(sub { PVE::Cluster::broadcast_tasklist([]) }), 256), "[]\0", 'none');

    my @tasks = map { { id => $_, text => 'y' x 1000 } } 1 .. 50;
    $sent = substr(payload(sub { PVE::Cluster::broadcast_tasklist(\@tasks) }), 256);
    chop $sent;
    my $kept = JSON::decode_json($sent);
    is_deeply($kept, [@tasks[0 .. $#$kept]], 'the first ones are kept');
    cmp_ok(length($sent), '<', 32768, 'it fits');
    cmp_ok(length($sent) + 1000, '>', 32768, 'and one more would not');
    is(scalar(@tasks), 50, 'the list of the caller is not changed');

    # Exactly at the limit: ["x…"] of 32767 bytes, then of 32768.
    $sent = substr(payload(sub { PVE::Cluster::broadcast_tasklist(['x' x 32763]) }), 256);
    is(length($sent), 32768, 'largest list');
    is(substr(payload(sub { PVE::Cluster::broadcast_tasklist(['x' x 32764]) }), 256), "[]\0", 'too large');
};

subtest 'get a value (5)' => sub {
    FakeIPCC::answer(5, "value\0", 0);
    is(
        payload(sub { PVE::Cluster::get_node_kv('k', 'n1') }),
        $field->('kv/k') . $field->('n1'),
        'request',
    );
    is_deeply(PVE::Cluster::get_node_kv('k', 'n1'), { n1 => 'value' }, 'up to the NUL');
    FakeIPCC::answer(5, "a\0b\0", 0);
    is_deeply(PVE::Cluster::get_node_kv('k', 'n1'), { n1 => 'a' }, 'the first one');
    FakeIPCC::answer(5, "\0", 0);
    is_deeply(PVE::Cluster::get_node_kv('k', 'n1'), { n1 => '' }, 'empty');
    FakeIPCC::answer(5, undef, ENOENT);
    is_deeply(PVE::Cluster::get_node_kv('k', 'n1'), {}, 'absent');
};

subtest 'file content (6)' => sub {
    FakeIPCC::answer(6, "text\n");
    is(payload(sub { PVE::Cluster::get_config('a/b') }), "a/b\0", 'request');
    is(PVE::Cluster::get_config('a'), "text\n", 'content');
    FakeIPCC::answer(6, undef, 0);
    is(PVE::Cluster::get_config('a'), '', 'empty file');
    FakeIPCC::answer(6, undef, ENOENT);
    is(PVE::Cluster::get_config('a'), undef, 'no file');
    FakeIPCC::answer(6, undef, EINVAL);
    is(died(sub { PVE::Cluster::get_config('a') }), "Invalid argument\n", 'error');
};

subtest 'cluster log (7, 8)' => sub {
    PVE::SafeSyslog::initlog('tagname');
    FakeIPCC::answer(7, undef, 0);
    my $log = sub { my @arguments = @_; return payload(sub { PVE::Cluster::log_msg(@arguments) }) };
    is($log->('info', 'root@pam', 'text'), "\x06\x09\x08root\@pam\0tagname\0text\0", 'request');
    is_deeply([PVE::SafeSyslog::taken()], [[6, '<root@pam> text']], 'syslog');
    for my $empty ('', undef) {
        is($log->('info', $empty, $empty), "\x06\x01\x08\0tagname\0empty message\0", 'empty');
        is_deeply([PVE::SafeSyslog::taken()], [[6, 'empty message']], 'empty: syslog');
    }
    is($log->('info', "a\0b", "c\0d"), "\x06\x02\x08a\0tagname\0c\0", 'cut at a NUL');
    PVE::SafeSyslog::taken();
    is(
        $log->('info', 'ü', "ä€ \x{1f600} \\u0041"),
        "\x06\x07\x08\\u00fc\0tagname\0\\u00e4\\u20ac \\ud83d\\ude00 \\u0041\0",
        'ASCII, readable as JSON',
    );
    is((PVE::SafeSyslog::taken())[0]->[1], '<\u00fc> \u00e4\u20ac \ud83d\ude00 \u0041', 'syslog, too');
    is($log->(0, 'r', "\xc3\xa4"), "\x00\x02\x08r\0tagname\0\\u00e4\0", 'bytes that are UTF-8');
    is($log->(0, 'r', "\xe4"), "\x00\x02\x08r\0tagname\0\\u00e4\0", 'bytes that are not');
    is($log->(7, 'r' x 300, 'm'), "\x07\xff\x08" . 'r' x 254 . "\0tagname\0m\0", 'long name');
    my %numbers = (
        alert => 1, crit => 2, critical => 2, err => 3, error => 3, warn => 4, warning => 4,
        notice => 5, info => 6, debug => 7, 0 => 0, 5 => 5,
    );
    for my $name (sort keys %numbers) {
        is(ord($log->($name, 'r', 'm')), $numbers{$name}, "priority $name");
    }
    for my $name ('emerg', 'INFO', 'foo', '', '1x', "1\n", undef) {
        my $error = died(sub { PVE::Cluster::log_msg($name, 'r', 'm') });
        like($error, qr/^need numeric log priority at /, 'priority ' . ($name // 'undef'));
    }
    is(ord($log->(256, 'r', 'm')), 255, 'a number beyond a byte does not become a small one');
    PVE::SafeSyslog::taken();
    FakeIPCC::answer(7, undef, EINVAL);
    PVE::Cluster::log_msg('info', 'r', 'm');
    is_deeply(
        [PVE::SafeSyslog::taken()],
        [[6, '<r> m'], ['err', "writing cluster log failed: ipcc_send_rec[7] $refused"]],
        'errors go to syslog',
    );
    FakeIPCC::answer(8, '{}');
    is(payload(sub { PVE::Cluster::get_cluster_log() }), "\0" x 17, 'read all');
    is(
        payload(sub { PVE::Cluster::get_cluster_log('root@pam', 258) }),
        "\x02\x01\0\0" . "\0" x 12 . "root\@pam\0",
        'read some',
    );
    is(PVE::Cluster::get_cluster_log(), '{}', 'text');
    FakeIPCC::answer(8, undef, EINVAL);
    is(died(sub { PVE::Cluster::get_cluster_log() }), "ipcc_send_rec[8] $refused", 'error');
};

subtest 'round-robin data (10)' => sub {
    FakeIPCC::answer(10, undef, EINVAL);
    my $data;
    is(warned(sub { $data = PVE::Cluster::rrd_dump() }), "ipcc_send_rec[10] $refused", 'error');
    is_deeply($data, {}, 'empty on errors');
    FakeIPCC::answer(10, "a/b:1:U:x\none:1\nnone\ntrail:1:2::\nzero:0:U\n\0");
    is(payload(sub { $data = PVE::Cluster::rrd_dump() }), undef, 'an error is not remembered');
    is_deeply(
        $data,
        { 'a/b' => [1, undef, 'x'], trail => [1, 2], zero => [0, undef] },
        'columns',
    );
    FakeIPCC::answer(10, "b:1:2\n");
    PVE::Cluster::rrd_dump() for 1 .. 3;
    is(FakeIPCC::operations(), '', 'used again');
    select(undef, undef, undef, 2.05);
    is_deeply(PVE::Cluster::rrd_dump(), { b => [1, 2] }, 'but not after two seconds');
    FakeIPCC::answer(10, undef, 0);
    select(undef, undef, undef, 2.05);
    is_deeply(PVE::Cluster::rrd_dump(), {}, 'no data at all');
};

subtest 'properties and tokens (11, 12, 13)' => sub {
    FakeIPCC::answer($_, '{"100":{"name":"\u00e4"}}') for 11, 13;
    is(payload(sub { PVE::Cluster::get_guest_config_property('name') }), "\0\0\0\0name\0", 'a property');
    is(payload(sub { PVE::Cluster::get_guest_config_property('n', 258) }), "\2\1\0\0n\0", 'of one guest');
    my $names = sub { my @arguments = @_; return payload(sub { PVE::Cluster::get_guest_config_properties(@arguments) }) };
    is($names->(['a', 'bc']), "\0\0\0\0\2a\0bc\0", 'properties');
    is($names->(['a'], 100), "\x64\0\0\0\1a\0", 'of one guest');
    is($names->([('a') x 255]), "\0\0\0\0\xff" . "a\0" x 255, 'most properties');
    is_deeply(PVE::Cluster::get_guest_config_property('name'), { 100 => { name => 'ä' } }, 'decoded');
    my $error = died(sub { PVE::Cluster::get_guest_config_properties([('a') x 256]) });
    like($error, qr/^only up to 255 properties supported/, 'one more');
    FakeIPCC::answer($_, undef, EINVAL) for 11, 12, 13;
    is(died(sub { PVE::Cluster::get_guest_config_property('x') }), "ipcc_send_rec[11] $refused", '11: error');
    is(died(sub { PVE::Cluster::get_guest_config_properties(['x']) }), "ipcc_send_rec[13] $refused", '13: error');

    is(died(sub { PVE::Cluster::verify_token('u', 't') }), "Invalid argument\n", 'token: error');
    FakeIPCC::answer(12, undef, ENOENT);
    is(PVE::Cluster::verify_token('u', 't'), 0, 'unknown token');
    FakeIPCC::answer(12, undef, 0);
    is(PVE::Cluster::verify_token('u', 't'), 1, 'valid token');
    is(payload(sub { PVE::Cluster::verify_token('u@pve!a', 's') }), "u\@pve!a s\0", 'request');
    is(payload(sub { PVE::Cluster::verify_token('u', "s\0t") }), "u s\0t\0", 'nothing is cut off');
};

done_testing();
