#!/usr/bin/perl -T
# clients.pl COUNT SECONDS: COUNT processes ask the daemon all the time for SECONDS. Prints the
# number of answers, the number of failures and the longest wait in milliseconds.
use strict;
use warnings;
use Time::HiRes qw(time sleep);
use PVE::IPCC;

my ($count, $seconds) = map { /^(\d+)$/ ? $1 : die "numbers\n" } @ARGV;
my @ends;
for (1 .. $count) {
    pipe(my $read, my $write) or die "pipe: $!\n";
    if (!fork) {
        my ($end, $asked, $failed, $longest) = (time + $seconds, 0, 0, 0);
        while (time < $end) {
            my $started = time;
            my $answer = PVE::IPCC::ipcc_send_rec(1);
            my $took = time - $started;
            $longest = $took if $took > $longest;
            $asked++;
            $failed++ if !defined $answer || $answer !~ /"starttime":/;
            sleep 0.01;
        }
        syswrite $write, "$asked $failed $longest\n";
        exit 0;
    }
    push @ends, $read;
}
my ($asked, $failed, $longest) = (0, 0, 0);
for my $end (@ends) {
    my ($a, $f, $l) = split ' ', scalar <$end>;
    $asked += $a;
    $failed += $f;
    $longest = $l if $l > $longest;
}
printf "%d %d %d\n", $asked, $failed, $longest * 1000;
