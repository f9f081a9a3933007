// holds WHAT PATH: makes PATH, or takes a lock on it (`lock`: bytes 10 to 14; `flock`), says so, waits for the file `go`
// and ends with 7. `log`: has PATH open for appending as descriptor 9 and writes "line" to it at the end.
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv) {
    if (argc < 3) return 2;
    int log = !strcmp(argv[1], "log"), fd = open(argv[2], O_RDWR | O_CREAT | (log ? O_APPEND : 0), 0600);
    if (fd < 0) return 3;
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 5};
    if (!strcmp(argv[1], "lock") && fcntl(fd, F_SETLK, &l)) return 4;
    if (!strcmp(argv[1], "flock") && flock(fd, LOCK_EX | LOCK_NB)) return 5;
    if (log && dup2(fd, 9) != 9) return 6;
    if (log) close(fd);
    if (write(1, "ready 1\n", 8) != 8) return 2;
    struct timespec t = {0, 3000000};
    while (access("go", F_OK) != 0) nanosleep(&t, NULL);
    if (log && write(9, "line\n", 5) != 5) return 8;
    return 7;
}
