package PVE::JSONSchema;

# Stand-in for the tests: PVE::Cluster only loads it.

use strict;
use warnings;

1;
