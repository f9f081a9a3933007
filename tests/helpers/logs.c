// logs: sends datagrams to the socket ./log, to which it is connected: "before"; on the file `go` "after". Exits with 7, or 8 if it
// is not connected any more.
#include <errno.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
int main(void) {
    struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "log"};
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    if (connect(fd, (void *)&a, sizeof a) || send(fd, "before", 6, 0) != 6) return 3;
    if (write(1, "ready 1\n", 8) != 8) return 2;
    while (access("go", F_OK) != 0) usleep(3000);
    if (send(fd, "after", 5, 0) == 5) return 7;
    return errno == ENOTCONN ? 8 : 4;
}
