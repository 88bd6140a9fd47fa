use strict;
use warnings;

use Test::More;

use Caught qw(died printed warned);
use LabNode qw(content);
use PVE::Cluster;

# The daemon of this node has been stopped; its database is there.
my $dir = '/var/lib/pve-cluster';
my $db = "$dir/config.db";
my $backups = "$dir/backup";

$ENV{PATH} = '/usr/bin:/bin';
delete @ENV{qw(IFS CDPATH ENV BASH_ENV)};

sub mode { return sprintf('%04o', (stat($_[0]))[2] & 07777) }
sub names { my ($path) = @_; opendir(my $dh, $path) or return 'missing'; return join(' ', sort grep { !m/^\./ } readdir($dh)) }
sub spoil { my ($path, $text) = @_; open(my $fh, '>', $path) or die "$path: $!"; print $fh $text; close($fh); return }

# All rows of a database, as text.
sub rows {
    my ($path) = @_;
    open(my $fh, '-|', 'sqlite3', $path, 'select inode,parent,version,writer,mtime,type,name,hex(data) from tree order by inode') or die $!;
    local $/;
    return scalar readline($fh);
}

system('cp', $db, "$dir/original") == 0 or die 'cp';
my $rows = rows("$dir/original");
like($rows, qr/user\.cfg/, 'a database with something in it');
umask(0);

subtest 'backup' => sub {
    is(names($backups), 'missing', 'no backups yet');
    my $said = printed(sub { PVE::Cluster::cfs_backup_database() });
    my ($file) = $said =~ m!^backup old database to '(\Q$backups\E/config-[0-9]+\.sql\.gz)'\n\z!
        or return fail("said: $said");
    cmp_ok(abs(($file =~ m/([0-9]+)\.sql/)[0] - time()), '<', 10, 'named after the time');
    is(mode($backups), '0700', 'directory is private');
    is(mode($file), '0600', 'file is private');
    is("$backups/" . names($backups), $file, 'nothing else is there');
    is(system("zcat $file | sqlite3 $dir/restored"), 0, 'can be restored');
    is(rows("$dir/restored"), $rows, 'to the same content');
    is(rows($db), $rows, 'the database is as it was');
    unlink("$dir/restored");

    chmod(0755, $backups);
    my @said = map { printed(sub { PVE::Cluster::cfs_backup_database() }) } 1 .. 2;
    is(mode($backups), '0700', 'an older directory becomes private');
    isnt($said[0], $said[1], 'two within a second do not replace each other');
};

subtest 'old backups' => sub {
    spoil("$backups/config-$_.sql.gz", '') for map { 1000000000 + $_ } 1 .. 12;
    spoil("$backups/$_", '') for qw(config-1.sql.gz.bak other.txt config-x.sql.gz);
    spoil("$backups/config-5.sql.gz.tmp.$_", '') for 1, 2;
    utime(1, 1, "$backups/config-5.sql.gz.tmp.1");
    my $said = printed(sub { PVE::Cluster::cfs_backup_database() });
    my @gone = map { "config-100000000$_.sql.gz" } 1 .. 6;
    is_deeply(
        [sort $said =~ m/^delete old backup '(.*)'$/mg],
        [sort map { "$backups/$_" } @gone],
        'the oldest are announced',
    );
    my @left = glob("$backups/config-*.sql.gz");
    is(scalar(grep { m/config-[0-9]/ } @left), 10, 'ten are left');
    is_deeply([grep { -e "$backups/$_" } @gone], [], 'the others are gone');
    is(names($backups) =~ m/(config-5\S*)/ ? $1 : '', 'config-5.sql.gz.tmp.2', 'so is what was left half done a day ago');
    is(join(' ', map { -e "$backups/$_" ? 1 : 0 } qw(config-1.sql.gz.bak other.txt config-x.sql.gz)), '1 1 1', 'other files stay');
    unlink(map { m/^(.*)\z/s } glob("$backups/*"));
};

subtest 'what cannot be backed up' => sub {
    my $fails = sub {
        my ($why, $what) = @_;
        my $error;
        my $said = printed(sub { $error = died(sub { PVE::Cluster::cfs_backup_database() }) });
        like($error, $why, $what);
        is(names($backups), '', 'leaves nothing behind') if -d $backups && !-l $backups;
        return;
    };
    spoil("$backups/config-1.sql.gz", 'older');
    rename($db, "$dir/away") or die $!;
    like(died(sub { PVE::Cluster::cfs_backup_database() }), qr!^no database '$db' to back up$!, 'no database');
    is(-e $db, undef, 'and none was made');
    is(content("$backups/config-1.sql.gz"), 'older', 'older backups are not touched');
    unlink("$backups/config-1.sql.gz");
    spoil($db, 'not a database ' x 1000);
    $fails->(qr/^backup of the database failed: sqlite3 was unable to read/, 'no database in the file');
    my $half = content("$dir/away");
    substr($half, 4096, 2048) = "\xff" x 2048;
    spoil($db, $half);
    $fails->(qr/^backup of the database failed: sqlite3 was unable to read/, 'a damaged database');
    rename("$dir/away", $db) or die $!;

    rmdir($backups) or die $!;
    symlink('/tmp', $backups) or die $!;
    $fails->(qr!^'\Q$backups\E' is not a directory$!, 'a link in place of the directory');
    unlink($backups);
    spoil($backups, '');
    $fails->(qr!^'\Q$backups\E' is not a directory$!, 'a file in place of the directory');
    unlink($backups);
    {
        local $ENV{PATH} = '/nonexistent';
        local $SIG{CHLD} = sub { 1 while waitpid(-1, 1) > 0 };
        like(printed(sub { PVE::Cluster::cfs_backup_database() }), qr/^backup old/, 'whatever PATH is and whoever waits for children');
    }
};

subtest 'rename' => sub {
    spoil("$db-wal", 'log');
    spoil("$db-shm", 'index');
    is(warned(sub { PVE::Cluster::cfs_rename_db_unsafe() }), '', 'renamed');
    my ($file) = names($dir) =~ m/(config\.db\.[0-9]+\.bak)(?= )/;
    ok($file, 'named after the time') or return diag(names($dir));
    is(content("$dir/$file-wal"), 'log', 'its log goes with it');
    is(names($dir), "backup $file $file-wal original", 'nothing else is there');
    unlink("$dir/$file-wal");
    is(rows("$dir/$file"), $rows, 'with its content');
    my $missing = "failed to rename old config database - No such file or directory\n";
    is(warned(sub { PVE::Cluster::cfs_rename_db_unsafe() }), $missing, 'none: a warning');
    system('cp', "$dir/original", $db);
    PVE::Cluster::cfs_rename_db_unsafe();
    my @renamed = names($dir) =~ m/config\.db\.[0-9]+\.bak/g;
    is(scalar(@renamed), 2, 'a second one does not replace the first');
    unlink("$dir/$_") for map { m/^(.*)\z/ } @renamed;
};

subtest 'unlink' => sub {
    is(died(sub { PVE::Cluster::cfs_unlink_db_unsafe() }), '', 'none: no error');
    system('cp', "$dir/original", $db);
    spoil("$db-$_", '') for qw(wal shm);
    is(warned(sub { PVE::Cluster::cfs_unlink_db_unsafe() }), '', 'removed');
    is(names($dir), 'backup original', 'with what belongs to it');
    mkdir($db) or die $!;
    like(died(sub { PVE::Cluster::cfs_unlink_db_unsafe() }), qr/^failed to unlink old config database - /, 'a directory');
    rmdir($db);
};

rename("$dir/original", $db) or die $!;
unlink(map { m/^(.*)\z/s } glob("$backups/*"));
rmdir($backups);

done_testing();
