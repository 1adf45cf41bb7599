#include "tests/emu/emu.h" // the functions are there
