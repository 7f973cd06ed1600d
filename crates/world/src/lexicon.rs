//! The stock of names and things from which a world is drawn, each in Korean and English.
//!
//! Two rules keep answers checkable: within one kind no name is part of another (`values_of_one_kind_
//! do_not_contain_each_other` in the tests of `facts`), and no person's name is a common word.

/// One name in both languages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    /// Korean.
    pub ko: &'static str,
    /// English, without an article unless it is part of the name.
    pub en: &'static str,
}

const fn n(ko: &'static str, en: &'static str) -> Name {
    Name { ko, en }
}

/// A place of the town: its name, who works there, and what it might be known for.
pub(crate) struct PlaceStock {
    pub(crate) name: Name,
    pub(crate) jobs: [Name; 2],
    pub(crate) specialities: [Name; 3],
}

const fn place(name: Name, jobs: [Name; 2], specialities: [Name; 3]) -> PlaceStock {
    PlaceStock {
        name,
        jobs,
        specialities,
    }
}

/// The town.
pub(crate) const TOWN: Name = n("윤슬마을", "Yunseul");

pub(crate) const PEOPLE: [Name; 32] = [
    n("미나", "Mina"),
    n("도윤", "Doyun"),
    n("서아", "Seoa"),
    n("하준", "Hajun"),
    n("지우", "Jiu"),
    n("은호", "Eunho"),
    n("가람", "Garam"),
    n("나래", "Narae"),
    n("여울", "Yeoul"),
    n("우솔", "Usol"),
    n("태오", "Taeo"),
    n("해솔", "Haesol"),
    n("현서", "Hyeonseo"),
    n("고은", "Goeun"),
    n("슬기", "Seulgi"),
    n("예준", "Yejun"),
    n("윤아", "Yuna"),
    n("은별", "Eunbyeol"),
    n("재희", "Jaehui"),
    n("정우", "Jeongu"),
    n("주원", "Juwon"),
    n("진솔", "Jinsol"),
    n("채린", "Chaerin"),
    n("하람", "Haram"),
    n("혜인", "Hyein"),
    n("호진", "Hojin"),
    n("민재", "Minjae"),
    n("수빈", "Subin"),
    n("연우", "Yeonu"),
    n("영훈", "Yeonghun"),
    n("보경", "Bogyeong"),
    n("동백", "Dongbaek"),
];

/// People who do not live in the town: nothing is known about them.
pub(crate) const STRANGERS: [Name; 48] = [
    n("경수", "Gyeongsu"),
    n("광현", "Gwanghyeon"),
    n("규리", "Gyuri"),
    n("기태", "Gitae"),
    n("다희", "Dahui"),
    n("대성", "Daeseong"),
    n("두리", "Duri"),
    n("로운", "Roun"),
    n("명희", "Myeonghui"),
    n("무진", "Mujin"),
    n("문수", "Munsu"),
    n("미르", "Mir"),
    n("범준", "Beomjun"),
    n("병호", "Byeongho"),
    n("복순", "Boksun"),
    n("상민", "Sangmin"),
    n("선영", "Seonyeong"),
    n("성재", "Seongjae"),
    n("세라", "Sera"),
    n("소연", "Soyeon"),
    n("송이", "Songi"),
    n("승기", "Seunggi"),
    n("시온", "Sion"),
    n("안나", "Anna"),
    n("양희", "Yanghui"),
    n("옥자", "Okja"),
    n("용수", "Yongsu"),
    n("원빈", "Wonbin"),
    n("유진", "Yujin"),
    n("인혜", "Inhye"),
    n("일남", "Ilnam"),
    n("장미", "Jangmi"),
    n("재석", "Jaeseok"),
    n("종철", "Jongcheol"),
    n("준기", "Jungi"),
    n("지호", "Jiho"),
    n("창민", "Changmin"),
    n("철수", "Cheolsu"),
    n("춘향", "Chunhyang"),
    n("치우", "Chiu"),
    n("탄이", "Tani"),
    n("평강", "Pyeonggang"),
    n("필립", "Philip"),
    n("한별", "Hanbyeol"),
    n("향기", "Hyanggi"),
    n("형돈", "Hyeongdon"),
    n("효리", "Hyori"),
    n("희준", "Huijun"),
];

/// Streets and corners where people live and houses stand; English takes "on" with each.
pub(crate) const QUARTERS: [Name; 8] = [
    n("나루터길", "Ferry Lane"),
    n("솔숲언덕", "Pine Hill"),
    n("등대곶", "Lighthouse Cape"),
    n("장터거리", "Market Street"),
    n("조개골목", "Shell Row"),
    n("안개고개", "Fog Ridge"),
    n("물레방아길", "Mill Lane"),
    n("방파제길", "Breakwater Road"),
];

pub(crate) const PLACES: [PlaceStock; 16] = [
    place(
        n("밀물빵집", "the High Tide Bakery"),
        [n("제빵사", "baker"), n("과자 장인", "biscuit maker")],
        [
            n("소금빵", "salt rolls"),
            n("팥빵", "red bean buns"),
            n("밤식빵", "chestnut bread"),
        ],
    ),
    place(
        n("갈매기우체국", "the Gull Post Office"),
        [n("우체부", "letter carrier"), n("우체국장", "postmaster")],
        [
            n("조개 우표", "shell stamps"),
            n("느린 엽서", "slow postcards"),
            n("파란 봉투", "blue envelopes"),
        ],
    ),
    place(
        n("별빛등대", "the Starlight Lighthouse"),
        [
            n("등대지기", "lighthouse keeper"),
            n("무전사", "radio operator"),
        ],
        [
            n("붉은 불빛", "its red beam"),
            n("나선 계단", "its spiral stairs"),
            n("안개 종", "its fog bell"),
        ],
    ),
    place(
        n("파도도서관", "the Wave Library"),
        [n("사서", "librarian"), n("제본사", "bookbinder")],
        [
            n("바다 지도", "old sea charts"),
            n("그림책 방", "its picture-book room"),
            n("항해 일지", "ship's logs"),
        ],
    ),
    place(
        n("소라시장", "the Conch Market"),
        [n("생선 장수", "fishmonger"), n("과일 장수", "fruit seller")],
        [
            n("말린 오징어", "dried squid"),
            n("아침 경매", "its morning auction"),
            n("꿀배", "honey pears"),
        ],
    ),
    place(
        n("돛단배찻집", "the Sailboat Teahouse"),
        [n("차 장인", "tea master"), n("떡 장수", "rice cake seller")],
        [
            n("유자차", "citron tea"),
            n("쑥차", "mugwort tea"),
            n("생강차", "ginger tea"),
        ],
    ),
    place(
        n("은물결의원", "the Silver Ripple Clinic"),
        [n("의사", "doctor"), n("간호사", "nurse")],
        [
            n("약초밭", "its herb garden"),
            n("흔들의자", "its rocking chairs"),
            n("박하사탕", "mint drops"),
        ],
    ),
    place(
        n("솔방울학교", "the Pine Cone School"),
        [
            n("수학 교사", "maths teacher"),
            n("음악 교사", "music teacher"),
        ],
        [
            n("나무 그네", "its wooden swings"),
            n("바다 합창단", "its sea choir"),
            n("연못", "its pond"),
        ],
    ),
    place(
        n("닻조선소", "the Anchor Boatyard"),
        [n("배 목수", "shipwright"), n("돛 장인", "sailmaker")],
        [
            n("작은 요트", "small yachts"),
            n("낚싯배", "fishing boats"),
            n("노란 카누", "yellow canoes"),
        ],
    ),
    place(
        n("물안개선착장", "the Sea Mist Landing"),
        [n("뱃사공", "ferry pilot"), n("매표원", "ticket seller")],
        [
            n("흰 나룻배", "its white ferry"),
            n("긴 나무다리", "its long pier"),
            n("우는 문", "its singing gate"),
        ],
    ),
    place(
        n("달무리온실", "the Moon Halo Greenhouse"),
        [n("정원사", "gardener"), n("꽃집 주인", "florist")],
        [
            n("밤에 피는 꽃", "night flowers"),
            n("레몬나무", "lemon trees"),
            n("이끼 정원", "its moss garden"),
        ],
    ),
    place(
        n("조약돌공방", "the Pebble Workshop"),
        [n("도예가", "potter"), n("유리 장인", "glassblower")],
        [
            n("푸른 찻잔", "blue teacups"),
            n("물고기 접시", "fish plates"),
            n("유리 풍경", "glass chimes"),
        ],
    ),
    place(
        n("노을극장", "the Sunset Theatre"),
        [n("배우", "actor"), n("인형술사", "puppeteer")],
        [
            n("그림자극", "shadow plays"),
            n("벨벳 막", "its velvet curtain"),
            n("옥상 무대", "its rooftop stage"),
        ],
    ),
    place(
        n("바람시계탑", "the Wind Clock Tower"),
        [n("시계공", "clockmaker"), n("종지기", "bell ringer")],
        [
            n("춤추는 새 인형", "its dancing bird"),
            n("바람개비", "its pinwheels"),
            n("네 얼굴", "its four faces"),
        ],
    ),
    place(
        n("해초국숫집", "the Seaweed Noodle House"),
        [n("요리사", "cook"), n("국수 장인", "noodle maker")],
        [
            n("초록 국수", "green noodles"),
            n("매운 국물", "spicy broth"),
            n("얼음 국수", "ice noodles"),
        ],
    ),
    place(
        n("물떼새천문대", "the Plover Observatory"),
        [n("천문학자", "astronomer"), n("렌즈 장인", "lens grinder")],
        [
            n("큰 망원경", "its great telescope"),
            n("별자리 천장", "its star ceiling"),
            n("유성 관측", "its meteor nights"),
        ],
    ),
];

pub(crate) const FOODS: [Name; 14] = [
    n("호박죽", "pumpkin porridge"),
    n("김밥", "seaweed rolls"),
    n("굴전", "oyster pancakes"),
    n("감자수프", "potato soup"),
    n("떡볶이", "spicy rice cakes"),
    n("꿀떡", "honey cakes"),
    n("메밀국수", "buckwheat noodles"),
    n("딸기파이", "strawberry pie"),
    n("군고구마", "baked sweet potatoes"),
    n("두부조림", "braised tofu"),
    n("옥수수빵", "corn bread"),
    n("새우볶음밥", "shrimp fried rice"),
    n("복숭아푸딩", "peach pudding"),
    n("만두", "dumplings"),
];

pub(crate) const HOBBIES: [Name; 14] = [
    n("연날리기", "kite flying"),
    n("낚시", "fishing"),
    n("수영", "swimming"),
    n("뜨개질", "knitting"),
    n("별 보기", "stargazing"),
    n("장기", "chess"),
    n("하모니카 연주", "playing the harmonica"),
    n("조개 줍기", "gathering shells"),
    n("그림 그리기", "painting"),
    n("자전거 타기", "cycling"),
    n("새 관찰", "bird watching"),
    n("시 쓰기", "writing poems"),
    n("춤", "dancing"),
    n("모형 배 만들기", "building model ships"),
];

pub(crate) const PETS: [Name; 10] = [
    n("고양이", "cat"),
    n("강아지", "dog"),
    n("토끼", "rabbit"),
    n("거북이", "turtle"),
    n("앵무새", "parrot"),
    n("햄스터", "hamster"),
    n("오리", "duck"),
    n("염소", "goat"),
    n("고슴도치", "hedgehog"),
    n("금붕어", "goldfish"),
];

pub(crate) const PET_NAMES: [Name; 32] = [
    n("두부", "Tofu"),
    n("호두", "Walnut"),
    n("보리", "Barley"),
    n("단추", "Button"),
    n("구름", "Cloud"),
    n("참깨", "Sesame"),
    n("감자", "Potato"),
    n("인절미", "Mochi"),
    n("번개", "Lightning"),
    n("솜이", "Cotton"),
    n("후추", "Pepper"),
    n("밤톨", "Chestnut"),
    n("소금", "Salt"),
    n("레몬", "Lemon"),
    n("우유", "Milk"),
    n("자두", "Plum"),
    n("꼬마", "Tiny"),
    n("나비", "Butterfly"),
    n("초코", "Choco"),
    n("라떼", "Latte"),
    n("망고", "Mango"),
    n("박하", "Mint"),
    n("수박", "Melon"),
    n("양말", "Sock"),
    n("오이", "Pickle"),
    n("유자", "Citron"),
    n("은행", "Ginkgo"),
    n("찐빵", "Bun"),
    n("쿠키", "Cookie"),
    n("탱고", "Tango"),
    n("하품", "Yawn"),
    n("홍시", "Persimmon"),
];

pub(crate) const FESTIVALS: [Name; 8] = [
    n("연날리기 대회", "the Kite Contest"),
    n("등불 축제", "the Lantern Festival"),
    n("모래성 대회", "the Sandcastle Contest"),
    n("굴 잔치", "the Oyster Feast"),
    n("종이배 경주", "the Paper Boat Race"),
    n("별밤 음악회", "the Starry Night Concert"),
    n("해돋이 모임", "the Sunrise Gathering"),
    n("헌책 장날", "the Old Book Fair"),
];

pub(crate) const MONTHS: [Name; 12] = [
    n("1월", "January"),
    n("2월", "February"),
    n("3월", "March"),
    n("4월", "April"),
    n("5월", "May"),
    n("6월", "June"),
    n("7월", "July"),
    n("8월", "August"),
    n("9월", "September"),
    n("10월", "October"),
    n("11월", "November"),
    n("12월", "December"),
];

/// Things that people carry about in stories.
pub(crate) const THINGS: [Name; 16] = [
    n("등불", "lantern"),
    n("우산", "umbrella"),
    n("바구니", "basket"),
    n("편지", "letter"),
    n("열쇠", "key"),
    n("모자", "hat"),
    n("북", "drum"),
    n("망치", "hammer"),
    n("담요", "blanket"),
    n("거울", "mirror"),
    n("피리", "flute"),
    n("나침반", "compass"),
    n("주전자", "kettle"),
    n("밧줄", "rope"),
    n("사진", "photograph"),
    n("화분", "flowerpot"),
];

/// Things that are counted, with the Korean counter.
pub(crate) const COUNTABLES: [(Name, &str); 8] = [
    (n("조개", "shells"), "개"),
    (n("우표", "stamps"), "장"),
    (n("귤", "tangerines"), "개"),
    (n("공책", "notebooks"), "권"),
    (n("엽서", "postcards"), "장"),
    (n("물고기", "fish"), "마리"),
    (n("종이배", "paper boats"), "개"),
    (n("달걀", "eggs"), "개"),
];
