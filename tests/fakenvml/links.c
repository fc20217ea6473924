/* What the fake driver says of links and topology. Included by nvml.c, and compiled with it.
 *
 * A `pair` line names two GPUs, the NVLinks between them, their topology level and whether they reach each other over
 * NVLink; what it leaves out, and a pair without a line, is not supported. The links of a GPU are numbered in the order
 * of its pairs; then come those to switches, after one that is not in use. -DNO_LINKS, -DNO_LINK_TYPES, -DNO_P2P and
 * -DNO_TOPOLOGY leave functions out.
 */

enum { MAX_LINKS = 18, TYPE_GPU = 0, TYPE_SWITCH = 2, P2P_CAPS_NVLINK = 2 };

/* nvmlPciInfo_t; the bus number is that of the GPU's place in the description. */
typedef struct {
    char legacy_id[16];
    unsigned domain, bus, device, pci_device, pci_subsystem;
    char id[32];
} pci_info;

static const unsigned SWITCH_BUS = 0xc0;

#if !defined NO_LINKS || !defined NO_P2P || !defined NO_TOPOLOGY
static int place_of(const struct box *box, const char *uuid) {
    for (int i = 0; i < box->gpus; i++)
        if (strcmp(box->gpu[i].uuid, uuid) == 0) return i;
    return -1;
}
#endif

#ifndef NO_LINKS
static void put_bus(pci_info *pci, unsigned bus) {
    memset(pci, 0, sizeof *pci);
    pci->bus = bus;
    snprintf(pci->id, sizeof pci->id, "00000000:%02X:00.0", bus);
    memcpy(pci->legacy_id, pci->id + 4, sizeof pci->legacy_id - 4);
}

/* The bus at the other end of a GPU's link: of another GPU, or of a switch; -1 for a link that is not in use. */
static int end_of(const struct box *box, const struct gpu *gpu, unsigned link) {
    unsigned first = 0;
    for (int i = 0; i < box->pairs; i++) {
        const struct pair *pair = &box->pair[i];
        const bool one = strcmp(pair->one, gpu->uuid) == 0;
        if (!one && strcmp(pair->other, gpu->uuid) != 0) continue;
        first += pair->links;
        if (link < first) return 1 + place_of(box, one ? pair->other : pair->one);
    }
    return link > first && link <= first + gpu->switched ? (int)(SWITCH_BUS + link % 4) : -1;
}

/* Begin a call on a link of a GPU: 0 and the bus at its other end. */
static int begin_link(const char *function, const char *handle, unsigned link, struct box **box, int *end) {
    const struct gpu *gpu;
    int code = begin_gpu(function, handle, box, &gpu);
    if (code) return code;
    if (link >= MAX_LINKS) return INVALID_ARGUMENT;
    *end = end_of(*box, gpu, link);
    return *end < 0 ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(const char *handle, pci_info *pci);
int nvmlDeviceGetNvLinkState(const char *handle, unsigned link, unsigned *active);
int nvmlDeviceGetNvLinkRemotePciInfo_v2(const char *handle, unsigned link, pci_info *pci);

int nvmlDeviceGetPciInfo_v3(const char *handle, pci_info *pci) {
    struct box *box;
    const struct gpu *gpu;
    int code = begin_gpu("nvmlDeviceGetPciInfo_v3", handle, &box, &gpu);
    if (!code) put_bus(pci, 1 + (unsigned)place_of(box, handle));
    free(box);
    return code;
}

int nvmlDeviceGetNvLinkState(const char *handle, unsigned link, unsigned *active) {
    struct box *box;
    int end = 0, code = begin_link("nvmlDeviceGetNvLinkState", handle, link, &box, &end);
    if (!code) *active = !box->links_down;
    free(box);
    return code;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(const char *handle, unsigned link, pci_info *pci) {
    struct box *box;
    int end = 0, code = begin_link("nvmlDeviceGetNvLinkRemotePciInfo_v2", handle, link, &box, &end);
    if (!code) put_bus(pci, (unsigned)end);
    free(box);
    return code;
}

#ifndef NO_LINK_TYPES
int nvmlDeviceGetNvLinkRemoteDeviceType(const char *handle, unsigned link, unsigned *type);

int nvmlDeviceGetNvLinkRemoteDeviceType(const char *handle, unsigned link, unsigned *type) {
    struct box *box;
    int end = 0, code = begin_link("nvmlDeviceGetNvLinkRemoteDeviceType", handle, link, &box, &end);
    if (!code) *type = (unsigned)end >= SWITCH_BUS ? TYPE_SWITCH : TYPE_GPU;
    free(box);
    return code;
}
#endif
#endif

#if !defined NO_P2P || !defined NO_TOPOLOGY
static const struct pair *pair_of(const struct box *box, const char *one, const char *other) {
    for (int i = 0; i < box->pairs; i++) {
        const struct pair *pair = &box->pair[i];
        if (strcmp(pair->one, one) == 0 && strcmp(pair->other, other) == 0) return pair;
        if (strcmp(pair->one, other) == 0 && strcmp(pair->other, one) == 0) return pair;
    }
    return NULL;
}

/* Begin a call on two GPUs: 0 and what the description says of them. */
static int begin_pair(const char *function, const char *one, const char *other, struct box **box,
                      const struct pair **pair) {
    const struct gpu *gpu;
    int code = begin_gpu(function, one, box, &gpu);
    if (code) return code;
    if (!other || place_of(*box, other) < 0) return GPU_IS_LOST;
    *pair = pair_of(*box, one, other);
    return *pair ? SUCCESS : NOT_SUPPORTED;
}
#endif

#ifndef NO_P2P
int nvmlDeviceGetP2PStatus(const char *one, const char *other, unsigned capability, unsigned *status);

int nvmlDeviceGetP2PStatus(const char *one, const char *other, unsigned capability, unsigned *status) {
    struct box *box;
    const struct pair *pair;
    int code = begin_pair("nvmlDeviceGetP2PStatus", one, other, &box, &pair);
    if (!code && (capability != P2P_CAPS_NVLINK || pair->p2p < 0)) code = NOT_SUPPORTED;
    if (!code) *status = (unsigned)pair->p2p;
    free(box);
    return code;
}
#endif

#ifndef NO_TOPOLOGY
int nvmlDeviceGetTopologyCommonAncestor(const char *one, const char *other, unsigned *level);

int nvmlDeviceGetTopologyCommonAncestor(const char *one, const char *other, unsigned *level) {
    struct box *box;
    const struct pair *pair;
    int code = begin_pair("nvmlDeviceGetTopologyCommonAncestor", one, other, &box, &pair);
    if (!code && pair->level < 0) code = NOT_SUPPORTED;
    if (!code) *level = (unsigned)pair->level;
    free(box);
    return code;
}
#endif
