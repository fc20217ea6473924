/* A stand-in for libnvidia-ml.so.1, told by a text file what to say.
 *
 * The file named by FAKE_NVML is read again at every call, so that a test edits it while a daemon runs; the helper in
 * __init__.py documents and writes it. Files in the folder FAKE_NVML.d hold more `proc` lines, one file per pid, and
 * count while that process lives. Names of called functions are appended to the file FAKE_NVML_LOG.
 *
 * Signatures, structures and return codes are those of NVIDIA's nvml.h (driver 560). Functions can be left out with
 * -DNO_MEMORY_V2, -DNO_PROCESSES_V3, -DNO_PROCESSES_V2, -DNO_GRAPHICS and -DNO_FIELDS; links.c has more. With -DVERSION="560.35.03" it
 * works only with the driver that the description names so, as a library does that an upgrade left behind.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    INSUFFICIENT_SIZE = 7,
    GPU_IS_LOST = 15,
    VERSION_MISMATCH = 18,
    ARGUMENT_VERSION_MISMATCH = 25,
    UNKNOWN = 999,
    FIELD_RECOVERY_ACTION = 230, /* NVML_FI_DEV_GET_GPU_RECOVERY_ACTION */
};

#define MAX_GPUS 64
#define MAX_PROCS 1024
#define MAX_PAIRS 512
#define MAX_FATES 16
#define MAX_LINE 1024
#define MAX_TEXT 96
#define NOT_AVAILABLE (~0ULL)

typedef unsigned long long bytes;

struct gpu {
    char uuid[MAX_TEXT], name[MAX_TEXT];
    bytes total, reserved, used, used_extra;
    bool used_given, tell;
    int handle, uuid_error, name_error, memory, memory_v2, processes, graphics, recovery, crash;
    unsigned switched;
    double hang;
};

/* What is between two GPUs; -1 for what the driver does not tell. */
struct pair {
    char one[MAX_TEXT], other[MAX_TEXT];
    unsigned links;
    int level, p2p;
};

/* What befalls every call of a function. */
struct fate {
    char function[MAX_TEXT];
    int code, crash;
    bool hang;
};

struct proc {
    char uuid[MAX_TEXT], type[4];
    unsigned pid;
    bytes used; /* NOT_AVAILABLE for `na` */
};

struct box {
    char driver[MAX_TEXT];
    int init, count_error, every;
    double hang, slow;
    unsigned count; /* said instead of the true one, unless 0 */
    int gpus, procs, pairs, fates;
    bool links_down;
    struct gpu gpu[MAX_GPUS];
    struct pair pair[MAX_PAIRS];
    struct fate fate[MAX_FATES];
    struct proc proc[MAX_PROCS];
};

typedef struct { bytes total, free, used; } memory_v1;
typedef struct { unsigned version; bytes total, reserved, free, used; } memory_v2;
typedef struct {
    unsigned field, scope;
    long long timestamp, latency;
    unsigned type, code;
    union { double real; unsigned number; bytes large; } value;
} field_value;
typedef struct { unsigned pid; bytes used; unsigned gpu_instance, compute_instance; } process_info;

/* A handle is a pointer to the UUID in this table, and stays valid when the order of the GPUs changes. */
static char handles[MAX_GPUS][MAX_TEXT];
static int sessions;

/* --- the description file ---------------------------------------------------------------------- */

static void copy(char *into, const char *text, size_t length) {
    if (length >= MAX_TEXT) length = MAX_TEXT - 1;
    memcpy(into, text, length);
    into[length] = '\0';
}

/* The value of KEY=VALUE or KEY="VALUE" in a line; false where the key is not there. */
static bool find(const char *line, const char *key, char *value) {
    size_t length = strlen(key);
    bool quoted = false;
    for (const char *at = line; *at; at++) {
        if (*at == '"') quoted = !quoted;
        if (quoted || *at != ' ' || strncmp(at + 1, key, length) != 0 || at[1 + length] != '=') continue;
        const char *start = at + length + 2;
        char end = ' ';
        if (*start == '"') {
            start++;
            end = '"';
        }
        const char *stop = strchr(start, end);
        copy(value, start, stop ? (size_t)(stop - start) : strlen(start));
        return true;
    }
    return false;
}

static bytes number(const char *line, const char *key, bytes otherwise) {
    char value[MAX_TEXT];
    if (!find(line, key, value)) return otherwise;
    return strcmp(value, "na") == 0 ? NOT_AVAILABLE : strtoull(value, NULL, 10);
}

/* Copies the second word of a line; what follows it, or NULL. */
static const char *second_word(const char *line, char *into) {
    const char *start = strchr(line, ' ');
    if (!start) return NULL;
    copy(into, start + 1, strcspn(start + 1, " "));
    return strchr(start + 1, ' ');
}

static void parse_gpu(struct box *box, const char *line) {
    if (box->gpus == MAX_GPUS) return;
    struct gpu *gpu = &box->gpu[box->gpus++];
    char value[MAX_TEXT];
    second_word(line, gpu->uuid);
    if (!find(line, "name", gpu->name)) copy(gpu->name, "Fake GPU", 8);
    gpu->total = number(line, "total", 0);
    gpu->reserved = number(line, "reserved", 0);
    gpu->used_given = find(line, "used", value);
    gpu->used = number(line, "used", 0);
    gpu->used_extra = number(line, "used_extra", 0);
    gpu->tell = number(line, "tell", 1) != 0;
    gpu->handle = (int)number(line, "handle", SUCCESS);
    gpu->uuid_error = (int)number(line, "uuid_error", SUCCESS);
    gpu->name_error = (int)number(line, "name_error", SUCCESS);
    gpu->memory = (int)number(line, "memory", SUCCESS);
    gpu->memory_v2 = (int)number(line, "memory_v2", SUCCESS);
    gpu->processes = (int)number(line, "processes", SUCCESS);
    gpu->graphics = (int)number(line, "graphics", SUCCESS);
    gpu->recovery = (int)number(line, "recovery", 0);
    gpu->crash = (int)number(line, "crash", 0);
    gpu->switched = (unsigned)number(line, "switched", 0);
    gpu->hang = find(line, "hang", value) ? strtod(value, NULL) : 0;
}

static void parse_proc(struct box *box, const char *line) {
    if (box->procs == MAX_PROCS) return;
    struct proc *proc = &box->proc[box->procs++];
    char type[MAX_TEXT] = "C";
    second_word(line, proc->uuid);
    find(line, "type", type);
    memcpy(proc->type, type, sizeof proc->type - 1);
    proc->pid = (unsigned)number(line, "pid", 0);
    proc->used = number(line, "used", 0);
}

static void parse_pair(struct box *box, const char *line) {
    if (box->pairs == MAX_PAIRS) return;
    struct pair *pair = &box->pair[box->pairs++];
    const char *rest = second_word(line, pair->one);
    if (rest) copy(pair->other, rest + 1, strcspn(rest + 1, " "));
    pair->links = (unsigned)number(line, "links", 0);
    pair->level = (int)number(line, "level", (bytes)-1);
    pair->p2p = (int)number(line, "p2p", (bytes)-1);
}

static void parse_fate(struct box *box, const char *line) {
    if (box->fates == MAX_FATES) return;
    struct fate *fate = &box->fate[box->fates++];
    second_word(line, fate->function);
    fate->code = (int)number(line, "code", SUCCESS);
    fate->crash = (int)number(line, "crash", 0);
    fate->hang = number(line, "hang", 0) != 0;
}

static void parse_line(struct box *box, const char *line) {
    if (strncmp(line, "gpu ", 4) == 0) parse_gpu(box, line);
    else if (strncmp(line, "proc ", 5) == 0) parse_proc(box, line);
    else if (strncmp(line, "pair ", 5) == 0) parse_pair(box, line);
    else if (strncmp(line, "fate ", 5) == 0) parse_fate(box, line);
    else if (strncmp(line, "links_down", 10) == 0) box->links_down = true;
    else if (strncmp(line, "driver ", 7) == 0) second_word(line, box->driver);
    else if (strncmp(line, "init ", 5) == 0) box->init = atoi(line + 5);
    else if (strncmp(line, "count_error ", 12) == 0) box->count_error = atoi(line + 12);
    else if (strncmp(line, "every ", 6) == 0) box->every = atoi(line + 6);
    else if (strncmp(line, "count ", 6) == 0) box->count = (unsigned)strtoul(line + 6, NULL, 10);
    else if (strncmp(line, "slow ", 5) == 0) box->slow = strtod(line + 5, NULL);
    else if (strncmp(line, "hang ", 5) == 0) box->hang = strtod(line + 5, NULL);
}

static bool parse_file(struct box *box, const char *path) {
    FILE *file = fopen(path, "re");
    if (!file) return false;
    char line[MAX_LINE];
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        parse_line(box, line);
    }
    fclose(file);
    return true;
}

static void parse_living(struct box *box, const char *path) {
    char name[MAX_LINE];
    snprintf(name, sizeof name, "%s.d", path);
    DIR *folder = opendir(name);
    if (!folder) return;
    for (struct dirent *entry; (entry = readdir(folder));) {
        pid_t pid = (pid_t)atol(entry->d_name);
        if (pid <= 0 || (kill(pid, 0) != 0 && errno == ESRCH)) continue;
        char member[2 * MAX_LINE];
        snprintf(member, sizeof member, "%s/%s", name, entry->d_name);
        parse_file(box, member);
    }
    closedir(folder);
}

/* What the box is like now; NULL where there is no description. The caller frees it. */
static struct box *look(void) {
    const char *path = getenv("FAKE_NVML");
    struct box *box = calloc(1, sizeof *box);
    if (!box) abort();
    if (path && parse_file(box, path)) {
        parse_living(box, path);
        return box;
    }
    free(box);
    return NULL;
}

/* --- what every call does ---------------------------------------------------------------------- */

static void note(const char *function) {
    const char *path = getenv("FAKE_NVML_LOG");
    int fd = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (fd < 0) return;
    char line[MAX_TEXT];
    int length = snprintf(line, sizeof line, "%s\n", function);
    if (write(fd, line, (size_t)length) != length) abort();
    close(fd);
}

static double hang_of(const struct box *box, const char *uuid) {
    if (!box) return 0;
    if (!uuid) return box->hang;
    for (int i = 0; i < box->gpus; i++)
        if (strcmp(box->gpu[i].uuid, uuid) == 0) return box->gpu[i].hang;
    return 0;
}

/* Block for as long as the description says so; editing it ends the wait. Returns what the box is like then. */
static struct box *wait_while_hung(struct box *box, const char *uuid) {
    const struct timespec pause = {0, 50 * 1000 * 1000};
    for (double waited = 0; waited < hang_of(box, uuid); waited += 0.05) {
        nanosleep(&pause, NULL);
        free(box);
        box = look();
    }
    return box;
}

/* The code of a call that this library and that driver can make together. */
static int fit(const struct box *box) {
#ifdef VERSION
    if (strcmp(box->driver, VERSION) != 0) return VERSION_MISMATCH;
#endif
    return box->every;
}

static const struct fate *fate_of(const struct box *box, const char *function) {
    for (int i = 0; box && i < box->fates; i++)
        if (strcmp(box->fate[i].function, function) == 0) return &box->fate[i];
    return NULL;
}

/* Crash, block until the description lets go, or go on with a code, as the description says of this function. */
static int meet(const char *function, struct box **box) {
    const struct timespec pause = {0, 50 * 1000 * 1000};
    const struct fate *fate = fate_of(*box, function);
    if (!fate) return SUCCESS;
    if (fate->crash) raise(fate->crash);
    while (fate && fate->hang) {
        nanosleep(&pause, NULL);
        free(*box);
        *box = look();
        fate = fate_of(*box, function);
    }
    return fate ? fate->code : *box ? SUCCESS : UNKNOWN;
}

/* Begin a call: 0 and the box, or the code that the call returns. */
static int begin(const char *function, struct box **box) {
    note(function);
    *box = NULL;
    if (sessions <= 0) return UNINITIALIZED;
    *box = look();
    if (!*box) return UNKNOWN;
    const double slow = (*box)->slow;
    const struct timespec pause = {(time_t)slow, (long)((slow - (double)(time_t)slow) * 1e9)};
    if (slow > 0) nanosleep(&pause, NULL); /* a sleep of no time would be a wake-up, too */
    const int code = meet(function, box);
    return code ? code : fit(*box);
}

/* Begin a call on a GPU; the code is GPU_IS_LOST where the description no longer names it. */
static int begin_gpu(const char *function, const char *uuid, struct box **box, const struct gpu **gpu) {
    int code = begin(function, box);
    if (code) return code;
    if (!uuid) return INVALID_ARGUMENT;
    for (int i = 0; i < (*box)->gpus; i++) {
        *gpu = &(*box)->gpu[i];
        if (strcmp((*gpu)->uuid, uuid) == 0) return SUCCESS;
    }
    return GPU_IS_LOST;
}

static int say(const char *text, char *into, unsigned length) {
    if (strlen(text) >= length) return INSUFFICIENT_SIZE;
    memcpy(into, text, strlen(text) + 1);
    return SUCCESS;
}

/* --- the library ------------------------------------------------------------------------------- */

#ifdef NO_INIT_FLAGS
static
#endif
int nvmlInitWithFlags(unsigned flags);
int nvmlInit_v2(void);
int nvmlShutdown(void);
const char *nvmlErrorString(int code);
int nvmlSystemGetDriverVersion(char *version, unsigned length);
int nvmlDeviceGetCount_v2(unsigned *count);
int nvmlDeviceGetHandleByIndex_v2(unsigned index, char **handle);
int nvmlDeviceGetHandleByUUID(const char *uuid, char **handle);
int nvmlDeviceGetUUID(const char *handle, char *uuid, unsigned length);
int nvmlDeviceGetName(const char *handle, char *name, unsigned length);
int nvmlDeviceGetMemoryInfo(const char *handle, memory_v1 *memory);

#ifdef NO_INIT_FLAGS
static
#endif
int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    note("nvmlInitWithFlags");
    struct box *box = look();
    int code = box ? box->init : UNKNOWN;
    if (box && fit(box) == VERSION_MISMATCH) code = VERSION_MISMATCH;
    free(box);
    if (code == SUCCESS) sessions++;
    return code;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    note("nvmlShutdown");
    if (sessions <= 0) return UNINITIALIZED;
    sessions--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    static _Thread_local char text[MAX_TEXT];
    snprintf(text, sizeof text, "Fake NVML error %d", code);
    return text;
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    struct box *box;
    int code = begin("nvmlSystemGetDriverVersion", &box);
    if (!code) code = say(box->driver, version, length);
    free(box);
    return code;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    struct box *box;
    int code = begin("nvmlDeviceGetCount_v2", &box);
    if (!code) {
        box = wait_while_hung(box, NULL);
        code = box ? box->count_error : UNKNOWN;
    }
    if (!code) *count = box->count ? box->count : (unsigned)box->gpus;
    free(box);
    return code;
}

static char *handle_of(const char *uuid) {
    int slot = 0;
    while (slot < MAX_GPUS - 1 && handles[slot][0] && strcmp(handles[slot], uuid) != 0) slot++;
    copy(handles[slot], uuid, strlen(uuid));
    return handles[slot];
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, char **handle) {
    struct box *box;
    int code = begin("nvmlDeviceGetHandleByIndex_v2", &box);
    if (!code) code = index < (unsigned)box->gpus ? box->gpu[index].handle : INVALID_ARGUMENT;
    if (!code) *handle = handle_of(box->gpu[index].uuid);
    free(box);
    return code;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, char **handle) {
    struct box *box;
    const struct gpu *gpu;
    int code = begin_gpu("nvmlDeviceGetHandleByUUID", uuid, &box, &gpu);
    if (!code) code = gpu->handle;
    if (!code) *handle = handle_of(uuid);
    free(box);
    return code;
}

int nvmlDeviceGetUUID(const char *handle, char *uuid, unsigned length) {
    struct box *box;
    const struct gpu *gpu;
    int code = begin_gpu("nvmlDeviceGetUUID", handle, &box, &gpu);
    if (!code) code = gpu->uuid_error;
    if (!code) code = say(gpu->uuid, uuid, length);
    free(box);
    return code;
}

int nvmlDeviceGetName(const char *handle, char *name, unsigned length) {
    struct box *box;
    const struct gpu *gpu;
    int code = begin_gpu("nvmlDeviceGetName", handle, &box, &gpu);
    if (!code) code = gpu->name_error;
    if (!code) code = say(gpu->name, name, length);
    free(box);
    return code;
}

/* Memory as v2 tells it (`used` without what the driver reserves). May block. */
static int measure(const char *function, const char *handle, bool v2, memory_v2 *memory) {
    struct box *box;
    const struct gpu *gpu;
    int code = begin_gpu(function, handle, &box, &gpu);
    if (!code && gpu->crash) raise(gpu->crash);
    if (!code && gpu->hang > 0) {
        free(wait_while_hung(box, handle));
        code = begin_gpu(function, handle, &box, &gpu);
    }
    if (!code) code = gpu->memory ? gpu->memory : v2 ? gpu->memory_v2 : SUCCESS;
    if (!code) {
        bytes used = gpu->used_extra;
        for (int i = 0; i < box->procs; i++)
            if (strcmp(box->proc[i].uuid, gpu->uuid) == 0 && box->proc[i].used != NOT_AVAILABLE)
                used += box->proc[i].used;
        if (gpu->used_given) used = gpu->used;
        bytes taken = used + gpu->reserved;
        memory->total = gpu->total;
        memory->reserved = gpu->reserved;
        memory->used = used;
        memory->free = taken < gpu->total ? gpu->total - taken : 0;
    }
    free(box);
    return code;
}

int nvmlDeviceGetMemoryInfo(const char *handle, memory_v1 *memory) {
    memory_v2 found;
    int code = measure("nvmlDeviceGetMemoryInfo", handle, false, &found);
    if (!code) *memory = (memory_v1){found.total, found.free, found.used + found.reserved};
    return code;
}

#ifndef NO_MEMORY_V2
int nvmlDeviceGetMemoryInfo_v2(const char *handle, memory_v2 *memory);

int nvmlDeviceGetMemoryInfo_v2(const char *handle, memory_v2 *memory) {
    if (memory->version != (sizeof *memory | 2u << 24)) return ARGUMENT_VERSION_MISMATCH;
    return measure("nvmlDeviceGetMemoryInfo_v2", handle, true, memory);
}
#endif

#ifndef NO_FIELDS
int nvmlDeviceGetFieldValues(const char *handle, int count, field_value *values);

/* Of all fields the one that gpuq asks for. */
int nvmlDeviceGetFieldValues(const char *handle, int count, field_value *values) {
    struct box *box;
    const struct gpu *gpu;
    int code = begin_gpu("nvmlDeviceGetFieldValues", handle, &box, &gpu);
    for (int i = 0; !code && i < count; i++) {
        values[i].code = values[i].field == FIELD_RECOVERY_ACTION ? SUCCESS : NOT_SUPPORTED;
        values[i].type = 1; /* NVML_VALUE_TYPE_UNSIGNED_INT */
        values[i].value.number = (unsigned)gpu->recovery;
    }
    free(box);
    return code;
}
#endif

#if !defined NO_PROCESSES_V3 || !defined NO_PROCESSES_V2
/* As nvml.h says: with too short an array the count needed and INSUFFICIENT_SIZE. */
static int list(const char *function, const char *handle, char type, unsigned *count, process_info *infos) {
    struct box *box;
    const struct gpu *gpu;
    int code = begin_gpu(function, handle, &box, &gpu);
    if (!code) code = type == 'C' ? gpu->processes : gpu->graphics;
    unsigned found = 0;
    for (int i = 0; !code && i < box->procs; i++) {
        const struct proc *proc = &box->proc[i];
        if (strcmp(proc->uuid, gpu->uuid) != 0 || !strchr(proc->type, type)) continue;
        if (infos && found < *count)
            infos[found] = (process_info){proc->pid, gpu->tell ? proc->used : NOT_AVAILABLE, ~0u, ~0u};
        found++;
    }
    if (!code) {
        if (found > (infos ? *count : 0)) code = INSUFFICIENT_SIZE;
        *count = found;
    }
    free(box);
    return code;
}

#define LISTING(name, type)                                                               \
    int name(const char *handle, unsigned *count, process_info *infos);                   \
    int name(const char *handle, unsigned *count, process_info *infos) {                  \
        return list(#name, handle, type, count, infos);                                   \
    }

#ifndef NO_PROCESSES_V3
LISTING(nvmlDeviceGetComputeRunningProcesses_v3, 'C')
#endif
#ifndef NO_PROCESSES_V2
LISTING(nvmlDeviceGetComputeRunningProcesses_v2, 'C')
#endif
#ifndef NO_GRAPHICS
#ifndef NO_PROCESSES_V3
LISTING(nvmlDeviceGetGraphicsRunningProcesses_v3, 'G')
#endif
#ifndef NO_PROCESSES_V2
LISTING(nvmlDeviceGetGraphicsRunningProcesses_v2, 'G')
#endif
#endif
#endif

#include "links.c"
