// Included by a flag of a C++ project (flags.rs): what is compiled with it has the mark.
#pragma once

#ifdef A_FLAG_OF_THE_PROJECT
__asm__(".pushsection .comment\n.string \"marked by a flag\"\n.popsection");
#endif
