// rights user|dropped: opens files as user 65534, or as root before it becomes that; after `go` it says whether kallsyms
// and pagemap show what root may see, writes to the log, ends with 7.
#define _GNU_SOURCE
#include <fcntl.h>
#include <grp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>
static int become(void) { return setgroups(0, NULL) || setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534) || prctl(PR_SET_DUMPABLE, 1); }
int main(int argc, char **argv) {
    int late = argc > 1 && !strcmp(argv[1], "dropped");
    if (!late && become()) return 1;
    int log = open("log", O_RDWR | O_CREAT | O_APPEND, 0600), dir = open("dir", O_RDONLY | O_DIRECTORY);
    int symbols = open("/proc/kallsyms", O_RDONLY), map = open("/proc/self/pagemap", O_RDONLY);
    if (log < 0 || dir < 0 || symbols < 0 || map < 0 || write(log, "begun\n", 6) != 6) return 2;
    if (late && become()) return 1;
    write(1, "ready 1\n", 8);
    while (access("go", F_OK)) usleep(10000);
    char line[64] = "";
    uint64_t entry = 0;
    if (pread(symbols, line, 16, 0) != 16 || pread(map, &entry, 8, (uintptr_t)line / 4096 * 8) != 8) return 3;
    dprintf(1, "symbols %s pages %s\n", strspn(line, "0") >= 16 ? "hidden" : "shown", entry & ((1ULL << 55) - 1) ? "shown" : "hidden");
    return dprintf(log, "ended\n") == 6 ? 7 : 4;
}
