package QbIPCC;

# A request by way of libqb, to be compared with PVE::IPCC.

use strict;
use warnings;

require XSLoader;
XSLoader::load('QbIPCC', '1.0');

1;
