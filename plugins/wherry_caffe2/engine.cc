// Runs Caffe2 networks for runner.py: loads a Caffe2 library, then answers requests on its pipes.
//
//   engine LIBRARY THREADS INIT_NET PREDICT_NET
//
// Needs no header of Caffe2's: what it calls are exported C++ functions whose mangled names and
// signatures have been the same from PyTorch 1.2 to 1.10 (the last with Caffe2 inside), but for
// NetDef's constructor. These libraries have the old ABI of std::string, and so has this file.
//
// Every message, in and out, is a length (uint32) and that many bytes. Numbers are little-endian.
// A request is a letter and its body; an answer is 0 and its body, or 1 and an error's words. The
// first answer comes unasked, when the networks are loaded. Bodies, where `text` is a length
// (uint32) and bytes, and `tensor` is a text (name), a type (uint8, of TensorProto.DataType), the
// number of axes (uint32), the axes (int64) and the values:
//
//   I tensor...   set inputs                        -> nothing
//   R             run the network once              -> uint64, nanoseconds in Caffe2's RunNet
//   O text...     outputs by name                   -> tensor...
//   C text        add a network (serialised NetDef) -> its name is known to L
//   L text...     run networks one after the other  -> uint64 each, nanoseconds
//   M             memory                            -> uint64, bytes: greatest resident set since
//                                                      loading began, less what it was then
#define _GLIBCXX_USE_CXX11_ABI 0

#include <dlfcn.h>
#include <signal.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

// Bound to the oldest versions of what newer C libraries have renewed, a program that was built on
// a new system also starts on an old one. __libc_start_main is called by the compiler's own start
// code: the linker's --wrap leads that call here.
#if defined(__x86_64__)
#define OLDEST "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define OLDEST "GLIBC_2.17"
#elif defined(__arm__)
#define OLDEST "GLIBC_2.4"
#endif

#ifdef OLDEST
__asm__(".symver dlopen, dlopen@" OLDEST);
__asm__(".symver dlsym, dlsym@" OLDEST);
__asm__(".symver dlerror, dlerror@" OLDEST);
__asm__(".symver old_start, __libc_start_main@" OLDEST);
extern "C" {
char __libc_single_threaded = 0;  // new headers ask for it, and glibc has it since 2.32 only
typedef void (*Hook)();
int old_start(int (*)(int, char**, char**), int, char**, Hook, Hook, Hook, void*);
int __wrap___libc_start_main(int (*main)(int, char**, char**), int count, char** words, Hook begin,
                             Hook end, Hook linker, void* stack) {
  return old_start(main, count, words, begin, end, linker, stack);
}
}
#endif

namespace {

const char* library_path = "";

// --- the library's functions ----------------------------------------------------------------

struct Blob;
struct Workspace;

struct Library {
  bool (*init)(int*, char***);
  void (*make_net)(void*);
  void (*make_net_in_arena)(void*, void*);
  bool (*read)(const char*, void*);
  bool (*parse)(const std::string&, void*);
  void (*predictor)(void*, const void*, const void*, Workspace*, bool, int);
  void* (*create_net)(Workspace*, const void*, bool);
  bool (*run_net)(Workspace*, const std::string&);
  Blob* (*create_blob)(Workspace*, const std::string&);
  const Blob* (*get_blob)(const Workspace*, const std::string&);
  void (*fill_blob)(const std::string&, Blob*);
  std::string (*give_blob)(const Blob&, const std::string&);
};

template <typename Function>
bool find(void* handle, const char* name, Function& function) {
  void* found = dlsym(handle, name);
  std::memcpy(&function, &found, sizeof found);
  return found != nullptr;
}

template <typename Function>
void need(void* handle, const char* name, Function& function) {
  if (!find(handle, name, function))
    throw std::runtime_error(std::string(library_path) + " lacks the symbol " + name +
                             ": Caffe2 is in PyTorch up to 1.10, and is wanted as built for the "
                             "old ABI of std::string, as the wheels of the package index are");
}

Library open_library(void** handle) {
  // Lazy: MKL's functions that a library was linked without are never called.
  *handle = dlopen(library_path, RTLD_LAZY | RTLD_GLOBAL);
  if (*handle == nullptr) throw std::runtime_error(dlerror());
  Library found;
  std::memset(&found, 0, sizeof found);
  need(*handle, "_ZN6caffe210GlobalInitEPiPPPc", found.init);
  if (!find(*handle, "_ZN6caffe26NetDefC1Ev", found.make_net))
    need(*handle, "_ZN6caffe26NetDefC1EPN6google8protobuf5ArenaE", found.make_net_in_arena);
  need(*handle, "_ZN6caffe223ReadProtoFromBinaryFileEPKcPN6google8protobuf11MessageLiteE",
       found.read);
  need(*handle, "_ZN6caffe225ParseProtoFromLargeStringERKSsPN6google8protobuf7MessageE",
       found.parse);
  need(*handle, "_ZN6caffe29PredictorC1ERKNS_6NetDefES3_PNS_9WorkspaceEbi", found.predictor);
  need(*handle, "_ZN6caffe29Workspace9CreateNetERKNS_6NetDefEb", found.create_net);
  need(*handle, "_ZN6caffe29Workspace6RunNetERKSs", found.run_net);
  need(*handle, "_ZN6caffe29Workspace10CreateBlobERKSs", found.create_blob);
  need(*handle, "_ZNK6caffe29Workspace7GetBlobERKSs", found.get_blob);
  need(*handle, "_ZN6caffe215DeserializeBlobERKSsPNS_4BlobE", found.fill_blob);
  need(*handle, "_ZN6caffe213SerializeBlobERKNS_4BlobERKSs", found.give_blob);
  return found;
}

// Room for an object of Caffe2's; it stays until the process ends.
void* room() { return std::calloc(1, 4096); }

void* new_net(const Library& library) {
  void* net = room();
  if (library.make_net != nullptr)
    library.make_net(net);
  else
    library.make_net_in_arena(net, nullptr);
  return net;
}

// How many threads Caffe2's own pool, which the int8 operators use, may have. OpenMP and MKL are
// told by the environment.
void limit_threads(void* handle, int threads) {
  void* flag = dlsym(handle, "FLAGS_caffe2_threadpool_force_inline");
  if (threads == 1 && flag != nullptr) *static_cast<bool*>(flag) = true;
  flag = dlsym(handle, "FLAGS_pthreadpool_size");
  if (flag != nullptr) *static_cast<int*>(flag) = threads;
}

// A Predictor is a table of virtual functions (8 bytes) and its PredictorConfig: parameters (a
// shared_ptr, 16), three vectors (24 each), the network and the workspace (a shared_ptr each).
const size_t WORKSPACE_IN_PREDICTOR = 8 + 16 + 3 * 24 + 16;

Workspace* load(const Library& library, const char* init, const char* predict) {
  void* nets[2];
  const char* paths[2] = {init, predict};
  for (int i = 0; i < 2; ++i) {
    nets[i] = new_net(library);
    if (!library.read(paths[i], nets[i]))
      throw std::runtime_error(std::string(paths[i]) + " is not a NetDef");
  }
  char* predictor = static_cast<char*>(room());
  library.predictor(predictor, nets[0], nets[1], nullptr, true, 0);
  Workspace* workspace = nullptr;
  std::memcpy(&workspace, predictor + WORKSPACE_IN_PREDICTOR, sizeof workspace);
  return workspace;
}

// --- protocol buffers: BlobProto and TensorProto ----------------------------------------------

enum Type { FLOAT = 1, INT32 = 2, BOOL = 5, UINT8 = 6, INT8 = 7, INT64 = 10, DOUBLE = 13 };

size_t size_of(int type) {
  switch (type) {
    case FLOAT: case INT32: return 4;
    case BOOL: case UINT8: case INT8: return 1;
    case INT64: case DOUBLE: return 8;
  }
  throw std::runtime_error("a tensor of type " + std::to_string(type) +
                           " of TensorProto.DataType cannot be passed on");
}

// The field of TensorProto that holds the values.
int field_of(int type) {
  return type == FLOAT ? 3 : type == INT64 ? 10 : type == DOUBLE ? 9 : 4;
}

void put_varint(std::string& out, uint64_t value) {
  while (value >= 128) {
    out.push_back(static_cast<char>(value | 128));
    value >>= 7;
  }
  out.push_back(static_cast<char>(value));
}

void put_key(std::string& out, int field, int wire) { put_varint(out, field << 3 | wire); }

int64_t whole(const char* at, int type) {
  int32_t four;
  int64_t eight;
  switch (type) {
    case INT32: std::memcpy(&four, at, 4); return four;
    case INT64: std::memcpy(&eight, at, 8); return eight;
    case INT8: return *reinterpret_cast<const int8_t*>(at);
    default: return *reinterpret_cast<const uint8_t*>(at);
  }
}

struct Cursor {
  const char* at;
  const char* end;

  const char* take(size_t size) {
    if (static_cast<size_t>(end - at) < size) throw std::runtime_error("a message ends too soon");
    const char* start = at;
    at += size;
    return start;
  }
  template <typename Number>
  Number number() {
    Number value;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }
  std::string text() {
    uint32_t size = number<uint32_t>();
    const char* start = take(size);
    return std::string(start, size);
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      uint8_t byte = number<uint8_t>();
      value |= static_cast<uint64_t>(byte & 127) << shift;
      if (byte < 128) return value;
    }
    throw std::runtime_error("not a varint");
  }
  Cursor part() {
    size_t size = varint();
    const char* start = take(size);
    return Cursor{start, start + size};
  }
  // Over a field's value, whatever it is.
  Cursor skip(int wire) {
    switch (wire) {
      case 0: varint(); return Cursor{at, at};
      case 1: take(8); return Cursor{at, at};
      case 2: return part();
      case 5: take(4); return Cursor{at, at};
    }
    throw std::runtime_error("not a protocol buffer");
  }
};

// A tensor of a request as a serialised BlobProto.
std::string encode(Cursor& body) {
  int type = body.number<uint8_t>();
  size_t count = 1, size = size_of(type);
  std::string tensor;
  for (uint32_t axes = body.number<uint32_t>(); axes > 0; --axes) {
    int64_t axis = body.number<int64_t>();
    count *= axis;
    put_key(tensor, 1, 0);
    put_varint(tensor, axis);
  }
  put_key(tensor, 2, 0);
  put_varint(tensor, type);
  const char* values = body.take(count * size);
  put_key(tensor, field_of(type), 2);
  if (type == FLOAT || type == DOUBLE) {
    put_varint(tensor, count * size);
    tensor.append(values, count * size);
  } else {
    std::string packed;
    for (size_t i = 0; i < count; ++i) put_varint(packed, whole(values + i * size, type));
    put_varint(tensor, packed.size());
    tensor += packed;
  }
  std::string blob;
  put_key(blob, 2, 2);
  put_varint(blob, 6);
  blob += "Tensor";
  put_key(blob, 3, 2);
  put_varint(blob, tensor.size());
  blob += tensor;
  return blob;
}

template <typename Number>
void put(std::string& out, Number value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void put_text(std::string& out, const std::string& text) {
  put(out, static_cast<uint32_t>(text.size()));
  out += text;
}

// A serialised BlobProto as a tensor of an answer.
void decode(const std::string& name, const std::string& blob, std::string& out) {
  Cursor whole_blob{blob.data(), blob.data() + blob.size()};
  Cursor tensor{nullptr, nullptr};
  while (whole_blob.at < whole_blob.end) {
    uint64_t key = whole_blob.varint();
    Cursor value = whole_blob.skip(key & 7);
    if (key >> 3 == 3) tensor = value;
  }
  if (tensor.at == nullptr) throw std::runtime_error(name + " is not a tensor");
  std::vector<int64_t> axes;
  Cursor values{nullptr, nullptr};
  int type = FLOAT;
  bool raw = false;
  while (tensor.at < tensor.end) {
    uint64_t key = tensor.varint();
    int field = key >> 3;
    if (field == 1 && (key & 7) == 0) {
      axes.push_back(tensor.varint());
    } else if (field == 2) {
      type = tensor.varint();
    } else {
      Cursor value = tensor.skip(key & 7);
      if ((key & 7) == 2 && (field == field_of(type) || field == 13)) {
        values = value;
        raw = field == 13;
      }
    }
  }
  size_t count = 1, size = size_of(type);
  put_text(out, name);
  put(out, static_cast<uint8_t>(type));
  put(out, static_cast<uint32_t>(axes.size()));
  for (size_t i = 0; i < axes.size(); ++i) {
    put(out, axes[i]);
    count *= axes[i];
  }
  size_t before = out.size();
  if (raw || type == FLOAT || type == DOUBLE) {
    if (values.at != nullptr) out.append(values.at, values.end - values.at);
  } else {
    while (values.at < values.end) {
      int64_t value = values.varint();
      out.append(reinterpret_cast<const char*>(&value), size);
    }
  }
  if (out.size() - before != count * size)
    throw std::runtime_error(name + " was given with another number of values than its shape has");
}

// --- the pipes --------------------------------------------------------------------------------

int answers = -1;

bool take(void* buffer, size_t size) {
  char* at = static_cast<char*>(buffer);
  while (size > 0) {
    ssize_t got = read(0, at, size);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += got;
    size -= got;
  }
  return true;
}

void give(const std::string& answer) {
  std::string message;
  put(message, static_cast<uint32_t>(answer.size()));
  message += answer;
  const char* at = message.data();
  size_t left = message.size();
  while (left > 0) {
    ssize_t sent = write(answers, at, left);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) _exit(1);
    at += sent;
    left -= sent;
  }
}

// A field of /proc/self/status, bytes; 0 where it does not tell.
uint64_t memory(const char* field) {
  FILE* status = std::fopen("/proc/self/status", "r");
  if (status == nullptr) return 0;
  char line[256];
  uint64_t found = 0;
  size_t size = std::strlen(field);
  while (std::fgets(line, sizeof line, status) != nullptr)
    if (std::strncmp(line, field, size) == 0) found = std::strtoull(line + size, nullptr, 10);
  std::fclose(status);
  return found * 1024;
}

uint64_t now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<uint64_t>(time.tv_sec) * 1000000000u + time.tv_nsec;
}

uint64_t timed(const Library& library, Workspace* workspace, const std::string& net) {
  uint64_t begun = now();
  bool done = library.run_net(workspace, net);
  uint64_t ended = now();
  if (!done) throw std::runtime_error("Caffe2 failed to run the network " + net);
  return ended - begun;
}

// The field `name` of a serialised NetDef.
std::string name_of(const std::string& net) {
  Cursor cursor{net.data(), net.data() + net.size()};
  while (cursor.at < cursor.end) {
    uint64_t key = cursor.varint();
    Cursor value = cursor.skip(key & 7);
    if (key >> 3 == 1) return std::string(value.at, value.end - value.at);
  }
  throw std::runtime_error("the network has no name");
}

void answer(const Library& library, Workspace* workspace, const std::string& net, uint64_t before,
            char what, Cursor body, std::string& out) {
  switch (what) {
    case 'I':
      while (body.at < body.end) {
        std::string name = body.text();
        library.fill_blob(encode(body), library.create_blob(workspace, name));
      }
      return;
    case 'R':
      put(out, timed(library, workspace, net));
      return;
    case 'O':
      while (body.at < body.end) {
        std::string name = body.text();
        const Blob* blob = library.get_blob(workspace, name);
        if (blob == nullptr) throw std::runtime_error("there is no blob " + name);
        decode(name, library.give_blob(*blob, name), out);
      }
      return;
    case 'C': {
      std::string bytes = body.text();
      void* made = new_net(library);
      if (!library.parse(bytes, made)) throw std::runtime_error("this is not a NetDef");
      if (library.create_net(workspace, made, true) == nullptr)
        throw std::runtime_error("Caffe2 did not make the network " + name_of(bytes));
      return;
    }
    case 'L':
      while (body.at < body.end) put(out, timed(library, workspace, body.text()));
      return;
    case 'M': {
      uint64_t peak = memory("VmHWM:");
      put(out, peak > before ? peak - before : uint64_t(0));
      return;
    }
  }
  throw std::runtime_error(std::string("no such request: ") + what);
}

void serve(char** words) {
  library_path = words[1];
  void* handle = nullptr;
  Library library = open_library(&handle);
  limit_threads(handle, std::atoi(words[2]));
  char* arguments[] = {words[0], nullptr};
  char** list = arguments;
  int count = 1;
  library.init(&count, &list);
  FILE* reset = std::fopen("/proc/self/clear_refs", "w");
  if (reset != nullptr) {  // the greatest resident set begins anew
    std::fputs("5", reset);
    std::fclose(reset);
  }
  uint64_t before = memory("VmRSS:");
  Workspace* workspace = load(library, words[3], words[4]);
  FILE* file = std::fopen(words[4], "rb");
  if (file == nullptr) throw std::runtime_error(std::string("cannot read ") + words[4]);
  std::string bytes;
  char part[65536];
  for (size_t got; (got = std::fread(part, 1, sizeof part, file)) > 0;) bytes.append(part, got);
  std::fclose(file);
  std::string net = name_of(bytes);
  give(std::string(1, '\0'));
  uint32_t size;
  std::string request;
  while (take(&size, sizeof size) && size > 0) {
    request.resize(size);
    if (!take(&request[0], size)) return;
    std::string out(1, '\0');
    try {
      answer(library, workspace, net, before, request[0],
             Cursor{request.data() + 1, request.data() + size}, out);
    } catch (const std::exception& error) {
      out = std::string(1, '\1') + error.what();
    }
    give(out);
  }
}

}  // namespace

int main(int count, char** words) {
  if (count != 5) {
    std::fprintf(stderr, "usage: %s LIBRARY THREADS INIT_NET PREDICT_NET\n", words[0]);
    return 2;
  }
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // not to outlive who asks, whatever it is doing
  if (getppid() == 1) return 1;
  // What the library prints on stdout is no answer.
  answers = dup(1);
  dup2(2, 1);
  try {
    serve(words);
  } catch (const std::exception& error) {
    give(std::string(1, '\1') + error.what());
  }
  std::fflush(nullptr);
  _exit(0);  // without the library's destructors, of which some crash
}
