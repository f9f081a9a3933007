// serves: a server at ./sock that answers each client with the byte it sent, a pair of sockets in which something waits, and the
// file `data` open if there is one; and memory that does not fit a pipe. On the file `go` it looks at the pair and exits with 7.
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
static char ballast[8 << 20];
int main(void) {
    struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "sock"};
    int server = socket(AF_UNIX, SOCK_STREAM, 0), pair[2];
    char b[16];
    memset(ballast, 'b', sizeof ballast);
    if (bind(server, (void *)&a, sizeof a) || listen(server, 5) || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair)) return 3;
    if (send(pair[0], "first", 5, 0) != 5 || send(pair[0], "second", 6, 0) != 6) return 3;
    open("data", O_RDONLY);
    if (write(1, "ready 1\n", 8) != 8) return 2;
    while (access("go", F_OK) != 0) {
        struct pollfd polled = {server, POLLIN, 0};
        if (poll(&polled, 1, 3) != 1) continue;
        int client = accept(server, NULL, NULL);
        if (read(client, b, 1) == 1 && write(client, b, 1) != 1) return 4;
        close(client);
    }
    if (ballast[sizeof ballast - 1] != 'b') return 8;
    if (recv(pair[1], b, sizeof b, MSG_DONTWAIT) != 5 || memcmp(b, "first", 5)) return 5;
    return recv(pair[1], b, sizeof b, MSG_DONTWAIT) == 6 && !memcmp(b, "second", 6) ? 7 : 6;
}
