// rights user|dropped [cwd|fifo|watch|socket]: opens files as user 65534, or as root before it becomes that; after `go` it
// says whether kallsyms and pagemap show what root may see, writes to the log, ends with 7. Besides, it works in `cwd`, has
// both ends of `fifo`, watches `deep/watch`, or is connected to `socket`, and ends with 8 if it is not any more.
#define _GNU_SOURCE
#include <fcntl.h>
#include <grp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
static int become(void) { return setgroups(0, NULL) || setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534) || prctl(PR_SET_DUMPABLE, 1); }
static int besides(const char *what) {
    struct sockaddr_un to = {AF_UNIX, "socket"};
    int fd;
    if (!strcmp(what, "cwd")) return mkdir("cwd", 0700) || chdir("cwd") ? -1 : 0;
    if (!strcmp(what, "fifo")) return mkfifo("fifo", 0600) ? -1 : open("fifo", O_RDWR);
    if (!strcmp(what, "watch")) return mkdir("deep", 0777) || mkdir("deep/watch", 0700) || inotify_add_watch(fd = inotify_init1(0), "deep/watch", IN_CREATE) < 0 ? -1 : fd;
    return connect(fd = socket(AF_UNIX, SOCK_DGRAM, 0), (void *)&to, sizeof to) ? -1 : fd;
}
int main(int argc, char **argv) {
    int late = argc > 1 && !strcmp(argv[1], "dropped"), home = open(".", O_RDONLY | O_DIRECTORY);
    if (!late && become()) return 1;
    int log = open("log", O_RDWR | O_CREAT | O_APPEND, 0600), dir = open("dir", O_RDONLY | O_DIRECTORY);
    int symbols = open("/proc/kallsyms", O_RDONLY), map = open("/proc/self/pagemap", O_RDONLY), more = argc > 2 ? besides(argv[2]) : 0;
    if (log < 0 || dir < 0 || symbols < 0 || map < 0 || more < 0 || write(log, "begun\n", 6) != 6) return 2;
    if (late && become()) return 1;
    write(1, "ready 1\n", 8);
    while (faccessat(home, "go", F_OK, 0)) usleep(10000);
    char line[64] = "";
    uint64_t entry = 0;
    if (pread(symbols, line, 16, 0) != 16 || pread(map, &entry, 8, (uintptr_t)line / 4096 * 8) != 8) return 3;
    dprintf(1, "symbols %s pages %s\n", strspn(line, "0") >= 16 ? "hidden" : "shown", entry & ((1ULL << 55) - 1) ? "shown" : "hidden");
    if (argc > 2 && !strcmp(argv[2], "socket") && send(more, "hi", 2, 0) != 2) return 8;
    return dprintf(log, "ended\n") == 6 ? 7 : 4;
}
