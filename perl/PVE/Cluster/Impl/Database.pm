package PVE::Cluster::Impl::Database;

# Saving and putting away the database, while the daemon is stopped (cluster join).

use strict;
use warnings;

use Fcntl qw(O_CREAT O_EXCL O_WRONLY);
use IO::Compress::Gzip qw($GzipError);
use IO::Handle;

my $DIR = '/var/lib/pve-cluster';
my $DATABASE = "$DIR/config.db";
my $BACKUPS = "$DIR/backup";
my $KEPT = 10;

# Has the disk keep what was written to a file or a directory.
sub sync_path {
    my ($path) = @_;
    open(my $fh, '<', $path) or die "unable to open '$path' - $!\n";
    $fh->sync() or die "unable to sync '$path' - $!\n";
    close($fh);
    return;
}

sub prepare_backup_dir {
    if (!mkdir($BACKUPS, oct('700')) && !$!{EEXIST}) {
        die "unable to create directory '$BACKUPS' - $!\n";
    }
    # A link could lead the backups, with all their secrets, elsewhere.
    die "'$BACKUPS' is not a directory\n" if -l $BACKUPS || !-d _;
    chmod(oct('700'), $BACKUPS) or die "unable to protect directory '$BACKUPS' - $!\n";
    return;
}

# Writes the SQL text of the database, compressed, into a file that did not exist.
sub dump_to {
    my ($path) = @_;

    # Nothing of the caller's environment is trusted to find or to run the program.
    local $ENV{PATH} = '/usr/sbin:/usr/bin:/sbin:/bin';
    delete local @ENV{qw(IFS CDPATH ENV BASH_ENV)};
    # A handler of the caller could take the exit status.
    local $SIG{CHLD} = 'DEFAULT';

    sysopen(my $out, $path, O_WRONLY | O_CREAT | O_EXCL, oct('600'))
        or die "unable to create '$path' - $!\n";
    my $gzip = IO::Compress::Gzip->new($out) or die "unable to write '$path' - $GzipError\n";
    open(my $in, '-|', 'sqlite3', '-batch', '-init', '/dev/null', $DATABASE, '.dump')
        or die "unable to run sqlite3 - $!\n";
    my $last = '';
    while (defined(my $line = readline($in))) {
        $last = $line;
        $gzip->print($line) or die "unable to write '$path' - $GzipError\n";
    }
    my $ended = close($in);
    my $status = $?;
    $gzip->close() or die "unable to write '$path' - $GzipError\n";
    close($out) or die "unable to write '$path' - $!\n";
    # sqlite3 ends a dump that it could not complete with a ROLLBACK, and with success.
    die "sqlite3 was unable to read '$DATABASE' (exit code " . ($status >> 8) . ")\n"
        if !$ended || $last !~ m/^COMMIT;/;
    return sync_path($path);
}

sub remove_old_backups {
    opendir(my $dh, $BACKUPS) or die "unable to read directory '$BACKUPS' - $!\n";
    my @all = readdir($dh);
    closedir($dh);
    # What backups that were killed have left, a day later.
    my @parts = map { m/^(config-[0-9]+\.sql\.gz\.tmp\.[0-9]+)\z/ ? "$BACKUPS/$1" : () } @all;
    unlink(grep { -M $_ > 1 } @parts);

    my @names = sort map { m/^(config-[0-9]+\.sql\.gz)\z/ ? $1 : () } @all;
    for my $name (@names > $KEPT ? @names[0 .. $#names - $KEPT] : ()) {
        print "delete old backup '$BACKUPS/$name'\n";
        unlink("$BACKUPS/$name") or warn "unable to delete '$BACKUPS/$name' - $!\n";
    }
    return;
}

sub cfs_backup_database {
    # sqlite3 would make an empty one.
    die "no database '$DATABASE' to back up\n" if !-f $DATABASE;
    prepare_backup_dir();

    my $time = time();
    $time++ while -e "$BACKUPS/config-$time.sql.gz";
    my $file = "$BACKUPS/config-$time.sql.gz";
    print "backup old database to '$file'\n";

    my $temporary = "$file.tmp.$$";
    my $done = eval {
        dump_to($temporary);
        rename($temporary, $file) or die "unable to rename '$temporary' - $!\n";
        sync_path($BACKUPS);
        1;
    };
    if (!$done) {
        my $error = $@;
        unlink($temporary);
        die "backup of the database failed: $error";
    }
    return remove_old_backups();
}

sub cfs_unlink_db_unsafe {
    if (!unlink($DATABASE) && !$!{ENOENT}) {
        die "failed to unlink old config database - $!\n";
    }
    # Of no use without it. A daemon that was stopped in order has left none.
    unlink("$DATABASE-wal", "$DATABASE-shm");
    return;
}

sub cfs_rename_db_unsafe {
    my $time = time();
    $time++ while -e "$DATABASE.$time.bak";
    my $backup = "$DATABASE.$time.bak";
    if (!rename($DATABASE, $backup)) {
        my $message = "failed to rename old config database - $!\n";
        die $message if !$!{ENOENT};
        warn $message;
        return;
    }
    # Its last changes, if the daemon could not write them back: sqlite3 finds them there.
    rename("$DATABASE-wal", "$backup-wal");
    unlink("$DATABASE-shm");
    return;
}

1;
