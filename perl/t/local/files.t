use strict;
use warnings;
use utf8;

use Test::More;

use Caught qw(died);
use LabNode qw(content put);
use PVE::Cluster qw(cfs_lock_file cfs_read_file cfs_register_file cfs_write_file);

my @parsed;
my $parser = sub {
    my ($path, $raw) = @_;
    push @parsed, $path;
    return defined($raw) ? { text => $raw } : undef;
};
my $writer = sub { my ($path, $data) = @_; push @parsed, "write $path"; return $data->{text} };

# What the parser made of a file, after a look at the versions, and whether it was asked.
sub state_of {
    my ($name) = @_;
    PVE::Cluster::cfs_update(1);
    @parsed = ();
    my $data = cfs_read_file($name);
    return [$data ? $data->{text} : undef, scalar(@parsed)];
}

unlink("/etc/pve/$_") for qw(user.cfg storage.cfg);

subtest 'registration' => sub {
    like(died(sub { cfs_register_file('nope.cfg', $parser) }), qr/^unknown file 'nope\.cfg' at /, 'unknown');
    like(died(sub { cfs_register_file(undef, $parser) }), qr/^unknown file '' at /, 'none');
    for my $code (
        sub { PVE::Cluster::cfs_file_version('user.cfg') },
        sub { cfs_read_file('user.cfg') },
        sub { cfs_write_file('user.cfg', {}) },
    ) {
        is(died($code), "unknown file type 'user.cfg'\n", 'not registered');
    }
    my $info = cfs_register_file('user.cfg', $parser, $writer);
    is_deeply($info, { parser => $parser, writer => $writer }, 'what was registered');
    like(
        died(sub { cfs_register_file('user.cfg', $parser) }),
        qr/^file 'user\.cfg' already registered at /,
        'twice',
    );
    cfs_register_file('/qemu-server/', $parser, $writer);
    cfs_register_file('storage.cfg', $parser);
    my @version = PVE::Cluster::cfs_file_version('user.cfg');
    is_deeply([scalar(@version), $version[1]], [2, $info], 'version and what was registered');
    like(died(sub { cfs_write_file('storage.cfg', {}) }), qr/^no writer defined at /, 'no writer');
};

subtest 'read and write' => sub {
    is_deeply(state_of('user.cfg'), [undef, 1], 'no file');
    is($parsed[0], '/etc/pve/user.cfg', 'full path');
    is_deeply(state_of('user.cfg'), [undef, 0], 'that is remembered, too');

    my $version = PVE::Cluster::cfs_file_version('user.cfg');
    @parsed = ();
    cfs_write_file('user.cfg', { text => "one\n" });
    is_deeply(\@parsed, ['write /etc/pve/user.cfg'], 'writer');
    is(content('/etc/pve/user.cfg'), "one\n", 'content');
    is(cfs_read_file('user.cfg')->{text}, "one\n", 'the writer sees it at once');
    is(PVE::Cluster::cfs_file_version('user.cfg'), $version, 'the version comes with the next update');
    is_deeply(state_of('user.cfg'), ["one\n", 1], 'read again');
    isnt(PVE::Cluster::cfs_file_version('user.cfg'), $version, 'another version');
    is_deeply(state_of('user.cfg'), ["one\n", 0], 'remembered');

    put('user.cfg', "by another\n");
    is(cfs_read_file('user.cfg')->{text}, "one\n", 'old until the next update');
    is_deeply(state_of('user.cfg'), ["by another\n", 1], 'then new');
    my $data = cfs_read_file('user.cfg');
    $data->{text} = 'changed by the caller';
    is_deeply(state_of('user.cfg'), ["by another\n", 0], 'callers get a copy');

    cfs_write_file('user.cfg', { text => 'ü€' }, 1);
    is(content('/etc/pve/user.cfg'), "\xc3\xbc\xe2\x82\xac", 'encoded');
    cfs_write_file('user.cfg', { text => '' });
    is_deeply(state_of('user.cfg'), ['', 1], 'empty file');
    is_deeply([glob('/etc/pve/*.tmp.*')], [], 'no temporary files');
    put("user.cfg.tmp.$$", 'left by a process with the same id');
    cfs_write_file('user.cfg', { text => "replaced\n" });
    is_deeply(state_of('user.cfg'), ["replaced\n", 1], 'written');
    is_deeply([glob('/etc/pve/*.tmp.*')], [], 'an old temporary file is replaced');
    is(died(sub { cfs_write_file('user.cfg', { text => 'x' x 1048577 }) }) ne '', 1, 'too large');
    is_deeply([content('/etc/pve/user.cfg'), glob('/etc/pve/*.tmp.*')], ["replaced\n"], 'nothing changed');
};

subtest 'guests' => sub {
    my ($here, $there) = map { "nodes/$_/qemu-server/100.conf" } 'node1', 'node2';
    is(PVE::Cluster::cfs_file_version($here), undef, 'no guest');
    is_deeply(state_of($here), [undef, 1], 'no file');
    is_deeply(state_of($here), [undef, 1], 'which is not remembered');
    put($here, "a\n");
    put('nodes/node2/qemu-server/x', '');
    is_deeply(state_of($here), ["a\n", 1], 'content');
    is_deeply(state_of($here), ["a\n", 0], 'remembered');
    my $version = PVE::Cluster::cfs_file_version($here);
    is(PVE::Cluster::cfs_file_version($there), $version, 'the version is that of the guest');
    for my $text ('b', 'c', 'd') {
        cfs_write_file($here, { text => $text });
        is_deeply(state_of($here), [$text, 1], 'every write counts');
    }
    rename("/etc/pve/$here", "/etc/pve/$there") or die $!;
    is_deeply(state_of($there), ['d', 1], 'moved to another node');
    is_deeply(state_of($here), [undef, 1], 'and gone from here');
    unlink("/etc/pve/$there");
    for my $bad ('nodes/node1/lxc/100.conf', 'nodes/a/b/qemu-server/1.conf', 'qemu-server/100.conf',
        "nodes/node1/qemu-server/100.conf\n", 'nodes/node1/qemu-server/100.conf.tmp', '', undef) {
        my $shown = $bad // '';
        is(died(sub { PVE::Cluster::cfs_file_version($bad) }), "unknown file type '$shown'\n", 'no such type');
    }
};

subtest 'locked' => sub {
    cfs_write_file('user.cfg', { text => "1\n" });
    state_of('user.cfg');
    put('user.cfg', "2\n");
    my $seen = cfs_lock_file('user.cfg', undef, sub { cfs_read_file('user.cfg')->{text} });
    is($seen, "2\n", 'the lock looks at the versions');
};

unlink('/etc/pve/user.cfg');
done_testing();
