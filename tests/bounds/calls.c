/* Preloaded (ld.so(8)): appends `PID FUNCTION` to the file $GPUQ_TEST_CALLS at each call that makes something durable,
 * writes a database's page, opens a file, changes a folder, or begins a program.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static int (*real_open)(const char *, int, ...);

static void note(const char *function)
{
	char line[96];
	const char *path = getenv("GPUQ_TEST_CALLS");
	int file, size;

	if (!real_open)
		real_open = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
	file = path ? real_open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
	if (file < 0)
		return;
	size = snprintf(line, sizeof line, "%d %s\n", (int)getpid(), function);
	if (write(file, line, (size_t)size) != size)
		abort();
	close(file);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define COUNTED(type, name, parameters, arguments) \
	type name parameters { note(#name); return REAL(name) arguments; }

COUNTED(int, fsync, (int file), (file))
COUNTED(int, fdatasync, (int file), (file))
COUNTED(ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t at), (file, data, size, at))
COUNTED(int, rename, (const char *from, const char *to), (from, to))
COUNTED(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to))
COUNTED(int, unlink, (const char *path), (path))
COUNTED(int, unlinkat, (int folder, const char *path, int flags), (folder, path, flags))
COUNTED(int, mkdir, (const char *path, mode_t mode), (path, mode))
COUNTED(int, mkdirat, (int folder, const char *path, mode_t mode), (folder, path, mode))
COUNTED(int, execv, (const char *path, char *const *argv), (path, argv))
COUNTED(int, execve, (const char *path, char *const *argv, char *const *env), (path, argv, env))

COUNTED(int, posix_spawn,
	(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,
	 char *const *argv, char *const *env),
	(pid, path, actions, attributes, argv, env))

#define OPENED(name, leading, passed) \
	int name(leading int flags, ...) \
	{ \
		mode_t mode = 0; \
		if (flags & (O_CREAT | O_TMPFILE)) { \
			va_list more; \
			va_start(more, flags); \
			mode = va_arg(more, mode_t); \
			va_end(more); \
		} \
		note(flags & O_CREAT ? "create" : "open"); \
		return REAL(name)(passed flags, mode); \
	}
#define AND ,
OPENED(open, const char *path AND, path AND)
OPENED(open64, const char *path AND, path AND)
OPENED(openat, int folder AND const char *path AND, folder AND path AND)
OPENED(openat64, int folder AND const char *path AND, folder AND path AND)
