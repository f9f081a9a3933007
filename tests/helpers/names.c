// names: holds files whose names a restart makes for a moment, 40 times: unlinked ones, one in a directory that is gone, a FIFO, a directory,
// a former name, a socket's. And others whose names are to stay: `data.0` to `data.9`, which are to be there, and sockets `sock.0` to `sock.9`.
// On the file `go` it looks at what they hold and exits with 7.
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#define BRIEF 40
#define LASTING 10
static int bound(const char *name) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    strcpy(a.sun_path, name);
    return bind(fd, (void *)&a, sizeof a) ? -1 : fd;
}
static int file(const char *name) {
    int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0640);
    return fd < 0 || write(fd, "held", 4) != 4 ? -1 : fd;
}
static int holds(int fd) {
    char text[5] = "";
    return pread(fd, text, 4, 0) == 4 && !strcmp(text, "held");
}
int main(void) {
    int unlinked[BRIEF], below[BRIEF], fifo[BRIEF], linked[BRIEF], data[LASTING];
    char name[64], other[64];
    for (int i = 0; i < BRIEF; i++) {
        sprintf(name, "unlinked.%d", i);
        if ((unlinked[i] = file(name)) < 0 || unlink(name)) return 3;
        if (mkdir("above", 0700) || mkdir("above/below", 0700) || (below[i] = file("above/below/file")) < 0) return 3;
        if (unlink("above/below/file") || rmdir("above/below") || rmdir("above")) return 3;
        sprintf(name, "fifo.%d", i);
        if (mkfifo(name, 0600) || (fifo[i] = open(name, O_RDWR)) < 0 || write(fifo[i], "held", 4) != 4 || unlink(name)) return 3;
        sprintf(name, "directory.%d", i);
        if (mkdir(name, 0700) || open(name, O_RDONLY | O_DIRECTORY) < 0 || rmdir(name)) return 3;
        sprintf(name, "former.%d", i); sprintf(other, "linked.%d", i);
        if ((linked[i] = file(name)) < 0 || link(name, other) || unlink(name)) return 3;
        sprintf(name, "bound.%d", i);
        if (bound(name) < 0 || unlink(name)) return 3;
    }
    for (int i = 0; i < LASTING; i++) {
        sprintf(name, "data.%d", i);
        if ((data[i] = open(name, O_RDONLY)) < 0) return 3;
        sprintf(name, "sock.%d", i);
        if (bound(name) < 0) return 3;
    }
    if (write(1, "ready 1\n", 8) != 8) return 2;
    struct timespec t = {0, 3000000};
    while (access("go", F_OK) != 0) nanosleep(&t, NULL);
    for (int i = 0; i < BRIEF; i++) {
        char text[5] = "";
        if (read(fifo[i], text, 4) != 4 || strcmp(text, "held")) return 4;
        if (!holds(unlinked[i]) || !holds(below[i]) || !holds(linked[i])) return 5;
    }
    for (int i = 0; i < LASTING; i++) if (!holds(data[i])) return 6;
    return 7;
}
