/*
 * The smallest model server that a container can hold: one static program, an image of
 * nothing else. It tells what it sees and may do, so that a test can hold the promises of
 * the runtime against what is so inside.
 *
 *   GET  /health          200
 *   GET  /metrics         how many requests are under way, for the drain
 *   GET  /cat/PATH        the first bytes of a file, or why not
 *   GET  /write/PATH      tries to create a file: "written", or why not
 *   GET  /env             its environment
 *   GET  /slow/MS         answers so many milliseconds later
 *   GET  /say/N           writes N lines
 *   GET  /fork/N          starts N processes that wait: how many it got
 *   GET  /eat             uses memory until it is stopped
 *   GET  /exit/CODE       ends
 *   POST /drain           200
 *
 * With DEAF in the environment TERM does nothing.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

extern char **environ;
static atomic_int running;

static void answer(int to, const char *body, size_t length) {
    char head[128];
    int n = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %zu\r\n\r\n", length);
    if (write(to, head, n) == n && length > 0 && write(to, body, length) < 0)
        perror("answer");
}

static void text(int to, const char *body) { answer(to, body, strlen(body)); }

static void cat(int to, const char *path) {
    static const size_t most = 1 << 16;
    int from = open(path, O_RDONLY);
    char *body = malloc(most);
    size_t have = 0;
    ssize_t n = 0;
    if (from < 0 || !body) {
        text(to, strerror(errno));
    } else {
        while (have < most && (n = read(from, body + have, most - have)) > 0)
            have += n;
        answer(to, body, have);
    }
    if (from >= 0)
        close(from);
    free(body);
}

static void environment(int to) {
    char body[1 << 15] = "";
    for (char **entry = environ; *entry && strlen(body) + strlen(*entry) + 2 < sizeof body; entry++) {
        strcat(body, *entry);
        strcat(body, "\n");
    }
    text(to, body);
}

static void start_many(int to, int wanted) {
    char body[32];
    int got = 0;
    for (; got < wanted; got++) {
        pid_t child = fork();
        if (child < 0)
            break;
        if (child == 0) {
            signal(SIGTERM, SIG_IGN);
            for (;;)
                pause();
        }
    }
    snprintf(body, sizeof body, "%d", got);
    text(to, body);
}

static void serve(int to, char *path) {
    char body[256];
    if (!strncmp(path, "/cat/", 5)) {
        cat(to, path + 4);
    } else if (!strncmp(path, "/write/", 7)) {
        int file = open(path + 6, O_CREAT | O_WRONLY, 0600);
        text(to, file < 0 ? strerror(errno) : "written");
        if (file >= 0)
            close(file);
    } else if (!strcmp(path, "/env")) {
        environment(to);
    } else if (!strcmp(path, "/metrics")) {
        /* This request is none that is waited for. */
        snprintf(body, sizeof body, "requests_running %d\n", atomic_load(&running) - 1);
        text(to, body);
    } else if (!strncmp(path, "/slow/", 6)) {
        usleep(1000 * atoi(path + 6));
        text(to, "slow\n");
    } else if (!strncmp(path, "/say/", 5)) {
        for (int i = 0, lines = atoi(path + 5); i < lines; i++)
            printf("line %d of %d\n", i, lines);
        text(to, "said\n");
    } else if (!strncmp(path, "/fork/", 6)) {
        start_many(to, atoi(path + 6));
    } else if (!strcmp(path, "/eat")) {
        for (;;) {
            char *piece = malloc(1 << 20);
            if (piece)
                memset(piece, 1, 1 << 20);
        }
    } else if (!strncmp(path, "/exit/", 6)) {
        exit(atoi(path + 6));
    } else {
        text(to, "ok\n");
    }
}

static void *connection(void *given) {
    int to = (int)(long)given;
    char request[4096], path[2048];
    size_t have = 0;
    ssize_t n;
    while (have < sizeof request - 1 && (n = read(to, request + have, sizeof request - 1 - have)) > 0) {
        have += n;
        request[have] = 0;
        if (strstr(request, "\r\n\r\n"))
            break;
    }
    request[have] = 0;
    if (sscanf(request, "%*s %2047s", path) == 1) {
        atomic_fetch_add(&running, 1);
        serve(to, path);
        atomic_fetch_sub(&running, 1);
    }
    close(to);
    return NULL;
}

static void ended(int with) {
    (void)with;
    static const char word[] = "TERM, ending\n";
    if (write(STDOUT_FILENO, word, sizeof word - 1) < 0)
        _exit(1);
    _exit(0);
}

int main(int count, char **words) {
    if (count < 2) {
        fprintf(stderr, "usage: server PORT [MODEL]\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, getenv("DEAF") ? SIG_IGN : ended);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1]))};
    int door = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(door, (struct sockaddr *)&here, sizeof here) || listen(door, 64)) {
        perror("listen");
        return 1;
    }
    printf("hello from uid %d, model %s\n", getuid(), count > 2 ? words[2] : "none");
    fprintf(stderr, "and this is its other output\n");
    for (;;) {
        int to = accept(door, NULL, NULL);
        pthread_t thread;
        if (to >= 0 && (pthread_create(&thread, NULL, connection, (void *)(long)to) || pthread_detach(thread)))
            close(to);
    }
}
